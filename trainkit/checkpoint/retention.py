"""Which checkpoints stay: small objects in place of flags."""

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Literal, Protocol, runtime_checkable

from trainkit.errors import UsageError

__all__ = [
    "KeepAny",
    "KeepBest",
    "KeepEvery",
    "KeepLast",
    "KeepNewer",
    "RetentionPolicy",
    "SavedStep",
    "as_policy",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SavedStep:
    """What a policy is told of one checkpoint."""

    step: int
    """Optimizer steps done; no two in one list have the same."""
    created: datetime
    """When it was committed, by the clock of the host that did, with a time zone."""
    metrics: Mapping[str, float]
    """The numbers that were saved with it; they may be nan, and any may be missing."""
    num_bytes: int
    """Size of all its files."""
    pinned: bool
    """Whether it stays in any case."""


@runtime_checkable
class RetentionPolicy(Protocol):
    """Decides which checkpoints stay.

    It is asked on rank 0 after each commit, and may be asked twice in a row: what it returns
    depends on its argument alone. Whatever it says, the newest checkpoint and pinned ones stay.
    If it raises, nothing is removed.
    """

    def keep(self, saved: Sequence[SavedStep]) -> Collection[int]:
        """The steps that stay.

        Args:
            saved: the checkpoints that are whole, newest first: by the order of saving, so
                that after going back to an older step the new branch comes first.
        """
        ...


@dataclass(frozen=True, slots=True)
class KeepLast:
    """Keep the newest ``count``."""

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"KeepLast({self.count}): at least 1 checkpoint has to stay")

    def keep(self, saved: Sequence[SavedStep]) -> Collection[int]:
        """See ``RetentionPolicy.keep``."""
        return [one.step for one in islice(saved, self.count)]


class KeepBest:
    """Keep the ``count`` best by one metric; of equal ones, the newest.

    A checkpoint without the metric, or where it is nan or infinite, is never among the best.
    """

    def __init__(self, metric: str, count: int = 1, *, mode: Literal["min", "max"] = "min") -> None:
        """Keep by ``metric``.

        Args:
            metric: its name, as given to ``save`` or ``step``.
            count: how many stay.
            mode: whether the smallest or the largest are best.

        Raises:
            UsageError: a count below 1, or another mode.
        """
        if count < 1:
            raise UsageError(f"KeepBest({metric!r}, {count}): expected a count of at least 1")
        if mode not in ("min", "max"):
            raise UsageError(f"KeepBest({metric!r}, mode={mode!r}): expected min or max")
        self.metric = metric
        self.count = count
        self.mode = mode
        self._told = False

    def keep(self, saved: Sequence[SavedStep]) -> Collection[int]:
        """See ``RetentionPolicy.keep``."""
        sign = 1.0 if self.mode == "min" else -1.0
        measured = [
            (sign * value, age, one.step)
            for age, one in enumerate(saved)
            if math.isfinite(value := one.metrics.get(self.metric, math.nan))
        ]
        if not measured and saved:
            self._tell(saved)
        return [step for _, _, step in sorted(measured)[: self.count]]

    def _tell(self, saved: Sequence[SavedStep]) -> None:
        """Say once that nothing has the metric: a slip in its name costs checkpoints."""
        if self._told:
            return
        self._told = True
        names = ", ".join(sorted({name for one in saved for name in one.metrics})) or "none"
        log.warning(
            "no checkpoint has a finite metric %r (metrics saved: %s), so none is kept as the "
            "best; give it to save(step, metrics) or step(step, metrics)",
            self.metric,
            names,
        )


@dataclass(frozen=True, slots=True)
class KeepEvery:
    """Keep the first checkpoint at or after each multiple of ``num_steps``, forever.

    With a save policy that hits the multiples these are the multiples; with one that goes by
    time there is still one for each stretch of ``num_steps``.
    """

    num_steps: int

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise UsageError(f"KeepEvery({self.num_steps}): expected at least 1 step")

    def keep(self, saved: Sequence[SavedStep]) -> Collection[int]:
        """See ``RetentionPolicy.keep``."""
        first: dict[int, int] = {}
        for one in saved:
            stretch = one.step // self.num_steps
            first[stretch] = min(one.step, first.get(stretch, one.step))
        return [step for stretch, step in first.items() if stretch > 0]


class KeepNewer:
    """Keep those that were saved within the last ``seconds``.

    By the clocks of the hosts that saved and of this one; what seems to come from the future
    stays.
    """

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.time) -> None:
        """Keep for ``seconds``.

        Args:
            seconds: age at which a checkpoint goes.
            clock: seconds since 1970.

        Raises:
            UsageError: not more than 0 seconds.
        """
        if not seconds > 0:
            raise UsageError(f"KeepNewer({seconds}): expected more than 0 seconds")
        self.seconds = seconds
        self._clock = clock

    def keep(self, saved: Sequence[SavedStep]) -> Collection[int]:
        """See ``RetentionPolicy.keep``."""
        now = self._clock()
        return [one.step for one in saved if now - one.created.timestamp() < self.seconds]


class KeepAny:
    """Keep what one of several policies keeps; ``KeepAny()`` keeps the newest alone."""

    def __init__(self, *policies: RetentionPolicy) -> None:
        self.policies: Sequence[RetentionPolicy] = policies

    def keep(self, saved: Sequence[SavedStep]) -> Collection[int]:
        """See ``RetentionPolicy.keep``."""
        return {step for policy in self.policies for step in policy.keep(saved)}


def as_policy(keep: "int | RetentionPolicy") -> RetentionPolicy:
    """The policy that the argument ``keep=`` stands for; a number means ``KeepLast``.

    Raises:
        UsageError: neither a number of at least 1 nor a policy.
    """
    if isinstance(keep, int):
        if keep < 1:
            raise UsageError(f"keep={keep}: at least 1 checkpoint has to stay")
        return KeepLast(keep)
    if not isinstance(keep, RetentionPolicy) or isinstance(keep, type):
        raise UsageError(
            f"keep={keep!r}: expected a number, or a policy such as "
            f'KeepAny(KeepLast(3), KeepBest("loss"))'
        )
    return keep
