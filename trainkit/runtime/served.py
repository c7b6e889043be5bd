"""Checkpoints of a run whose parameters are on servers: one rank saves, the others follow."""

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trainkit.checkpoint import CheckpointManager, CheckpointOptions, EverySeconds, SavePolicy
from trainkit.checkpoint.adapters import rng
from trainkit.checkpoint.policy import StopMonitor, next_look
from trainkit.checkpoint.retention import RetentionPolicy
from trainkit.errors import EnvironmentFaultError, Preempted, TrainkitError, UsageError
from trainkit.strategies import SharedState

__all__ = ["ServedCheckpoints"]

log = logging.getLogger(__name__)

_ENTRY = "outer_optimizer"
_DEFAULT_SECONDS = 600.0


class ServedCheckpoints(CheckpointManager):
    """As ``CheckpointManager``: every rank makes the same calls, but none waits for another.

    The chief saves, and only what the servers have as well. Another rank reads the folder, if it
    sees it, for the state of its own optimizer; all else it gets from the servers.
    """

    def __init__(
        self,
        url: str | os.PathLike[str] | None,
        state: Mapping[str, Any],
        shared: SharedState,
        *,
        save: SavePolicy | None,
        keep: int | RetentionPolicy,
        monitor: StopMonitor,
        local_tier: str | None,
        options: CheckpointOptions | None,
    ) -> None:
        """See ``CheckpointManager``; ``shared`` is the strategy's.

        Raises:
            UsageError: also where the state has an entry of the name that is needed here.
        """
        if _ENTRY in state:
            raise UsageError(f"the entry {_ENTRY!r} is the servers': name yours otherwise")
        self._shared = shared
        shared.carry(state)
        options = options or CheckpointOptions()
        super().__init__(
            url,
            {**state, _ENTRY: shared.outer},
            save=_InStep(save or EverySeconds(_DEFAULT_SECONDS), shared),
            keep=keep,
            monitor=monitor,
            local_tier=local_tier if shared.saves else None,
            options=options if shared.saves else replace(options, read_only=True),
        )

    def step(self, step: int, metrics: Mapping[str, float] | None = None) -> bool:
        """See ``CheckpointManager.step``; a save that is due waits for the end of the round."""
        self._shared.stepped(step)
        try:
            return super().step(step, metrics)
        except Preempted as stop:
            if self._shared.saves:
                raise
            raise Preempted(
                f"stopped after step {step} as asked; the chief saves",
                exit_code=int(stop.code or 0),
            ) from None

    def save(
        self,
        step: int,
        metrics: Mapping[str, float] | None = None,
        *,
        blocking: bool = False,
    ) -> None:
        """See ``CheckpointManager.save``; the round is ended for it, so all ranks call it."""
        self._shared.stepped(step)
        self._shared.synchronize()
        if self._shared.saves:
            super().save(step, metrics, blocking=blocking)

    def save_unsaved(self) -> None:
        """See ``CheckpointManager.save_unsaved``; the round is ended for it."""
        self._shared.synchronize()
        if self._shared.saves:
            super().save_unsaved()

    def restore_latest(self, *, init_from: str | os.PathLike[str] | None = None) -> int | None:
        """Come in where the job is, or restore the newest checkpoint if this is its start.

        See ``CheckpointManager.restore_latest``.
        """

        def restore() -> int | None:
            if self._shared.saves:
                return self._restored_without_outer(init_from)
            return self._restored_for_the_optimizer()

        return self._shared.begin(restore)

    def restore(self, step: int) -> int:
        """See ``CheckpointManager.restore``; only where it is the start of the job."""
        restored = self._shared.begin(
            lambda: super(ServedCheckpoints, self).restore(step) if self._shared.saves else None
        )
        return step if restored is None else restored

    def _restored_without_outer(self, init_from: str | os.PathLike[str] | None) -> int | None:
        """Restore; also what was saved under a strategy without servers."""
        try:
            return super().restore_latest(init_from=init_from)
        except EnvironmentFaultError as error:
            if f"{_ENTRY}: the run expects" not in str(error):
                raise
        outer = self._state.pop(_ENTRY)
        try:
            log.info("the checkpoint is of a run without servers: the outer momentum begins at 0")
            return super().restore_latest(init_from=init_from)
        finally:
            self._state[_ENTRY] = outer

    def _restored_for_the_optimizer(self) -> int | None:
        """What this rank has of its own is its optimizer's state: the chief's is nearest to it."""
        kept = rng.capture()
        try:
            return self._restored_without_outer(None)
        except (Exception, TrainkitError) as reason:
            log.warning("this worker's optimizer begins anew: %s", reason)
            return None
        finally:
            rng.give_back(kept)  # that of the chief would be the same on all ranks


class _InStep:
    """A policy that is asked as always, and whose save waits until the round is over."""

    def __init__(self, policy: SavePolicy, shared: SharedState) -> None:
        self._policy = policy
        self._shared = shared
        self._due = False

    @property
    def deterministic(self) -> bool:
        return self._policy.deterministic

    def should_save(self, step: int, now: float) -> bool:
        self._due = self._policy.should_save(step, now) or self._due
        if not self._due or not self._shared.in_step:
            return False
        self._due = False
        return True

    def next_look(self, step: int, now: float, pace: float) -> int:
        return step + 1 if self._due else next_look(self._policy, step, now, pace)
