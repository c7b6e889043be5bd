"""When to save, and when to stop: small objects in place of flags."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from trainkit.errors import UsageError

__all__ = ["AnyOf", "EverySeconds", "EverySteps", "SavePolicy", "StopMonitor", "next_look"]


class StopMonitor(Protocol):
    """Knows whether the job was asked to stop, for ``CheckpointManager.step`` to ask.

    An attribute ``exit_code``, where there is one, becomes the exit code of ``Preempted``.
    """

    last_step: int | None
    """Set by ``CheckpointManager.step`` before it looks at ``stirred``."""

    stirred: bool
    """Whether ``stop_now`` has something to decide; it is not asked before."""

    def stop_now(self, step: int) -> bool:
        """Whether to save and stop after ``step``: the same answer at one step on all ranks.

        May raise ``Preempted``, to stop without a save.
        """
        ...


@runtime_checkable
class SavePolicy(Protocol):
    """Decides after which steps to save.

    A policy may also have ``next_look(step, now, pace) -> int``: the first later step at which
    ``should_save`` needs to be asked again, given ``pace`` in seconds a step. Until then a step
    costs one comparison of integers. Without the method, each step asks.
    """

    @property
    def deterministic(self) -> bool:
        """Whether ``should_save`` depends on the step alone.

        If not, only rank 0 is asked, and its answer is given to all ranks: that costs one
        exchange of messages for each step at which it is asked.
        """
        ...

    def should_save(self, step: int, now: float) -> bool:
        """Whether to save after ``step``.

        Args:
            step: optimizer steps done.
            now: seconds on a clock that stands still while a checkpoint is saved.
        """
        ...


class EverySteps:
    """Save after each step that is a multiple of ``num_steps``."""

    deterministic = True

    def __init__(self, num_steps: int) -> None:
        if num_steps < 1:
            raise UsageError(f"EverySteps({num_steps}): expected at least 1 step")
        self.num_steps = num_steps

    def should_save(self, step: int, now: float) -> bool:
        """See ``SavePolicy.should_save``."""
        return step % self.num_steps == 0

    def next_look(self, step: int, now: float, pace: float) -> int:
        """The next multiple."""
        return (step // self.num_steps + 1) * self.num_steps


class EverySeconds:
    """Save after ``seconds`` of training, from the end of one save to the start of the next.

    Time that saves take does not count, so slow storage never leads to save upon save.
    """

    deterministic = False

    def __init__(self, seconds: float) -> None:
        if not seconds > 0:
            raise UsageError(f"EverySeconds({seconds}): expected more than 0 seconds")
        self.seconds = seconds
        self._due: float | None = None

    def should_save(self, step: int, now: float) -> bool:
        """See ``SavePolicy.should_save``; the first call starts the clock."""
        if self._due is None:
            self._due = now + self.seconds
        if now < self._due:
            return False
        self._due = now + self.seconds
        return True

    def next_look(self, step: int, now: float, pace: float) -> int:
        """Half of the way to the due moment, so that a change of pace is noticed in time."""
        left = max(0.0, (self._due or now) - now)
        return step + max(1, min(int(left / pace / 2), 1_000_000) if pace > 0 else 1)


class AnyOf:
    """Save when one of several policies wants to; ``AnyOf()`` never does."""

    def __init__(self, *policies: SavePolicy) -> None:
        self.policies: Sequence[SavePolicy] = policies

    @property
    def deterministic(self) -> bool:
        """Whether all of them are."""
        return all(policy.deterministic for policy in self.policies)

    def should_save(self, step: int, now: float) -> bool:
        """See ``SavePolicy.should_save``; each is asked, since some keep count."""
        return any([policy.should_save(step, now) for policy in self.policies])

    def next_look(self, step: int, now: float, pace: float) -> int:
        """The earliest of theirs."""
        looks = [next_look(policy, step, now, pace) for policy in self.policies]
        return min(looks, default=step + 1_000_000)


def next_look(policy: SavePolicy, step: int, now: float, pace: float) -> int:
    """The first step after ``step`` at which to ask ``policy`` again."""
    hint = getattr(policy, "next_look", None)
    return step + 1 if hint is None else max(step + 1, int(hint(step, now, pace)))
