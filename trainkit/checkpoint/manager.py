"""The one object that a training loop talks to about checkpoints."""

import logging
import operator
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from trainkit.checkpoint.adapters.state import check_state, not_begun
from trainkit.checkpoint.initial import load_weights
from trainkit.checkpoint.options import CheckpointOptions
from trainkit.checkpoint.policy import EverySeconds, SavePolicy, StopMonitor
from trainkit.checkpoint.restoring import Found
from trainkit.checkpoint.retention import RetentionPolicy, as_policy
from trainkit.checkpoint.root import OpenRoot
from trainkit.checkpoint.save.pace import Plan
from trainkit.checkpoint.saving import Saver
from trainkit.checkpoint.schedule import Schedule
from trainkit.checkpoint.torn import refuse_torn
from trainkit.checkpoint.watching import new_steps
from trainkit.coordination import Communicator
from trainkit.errors import (
    DeadlineError,
    ExitCode,
    InputMissingError,
    Preempted,
    TrainkitError,
    UsageError,
)
from trainkit.storage import open_storage

__all__ = ["CheckpointManager"]

log = logging.getLogger(__name__)

_DEFAULT_SECONDS = 600.0
_NEVER = sys.maxsize


class CheckpointManager:
    """Saves and restores the state of a run, on all ranks together.

    ``save``, ``step``, ``restore_latest``, ``restore`` and the constructor are called by every
    rank, in the same order; the manager decides who writes. What fails on one rank raises on
    all. A checkpoint counts from the moment its manifest is there, whole, and never before.
    """

    def __init__(
        self,
        url: str | os.PathLike[str] | None,
        state: Mapping[str, Any],
        *,
        save: SavePolicy | None = None,
        keep: int | RetentionPolicy = 3,
        communicator: Communicator | None = None,
        monitor: StopMonitor | None = None,
        local_tier: str | os.PathLike[str] | None = None,
        options: CheckpointOptions | None = None,
    ) -> None:
        """Open a folder of checkpoints, and take it for this run until ``close``.

        A run that has it already is waited for if it may be dead or about to end.

        Args:
            url: local path or ``file://`` URL, the same on all ranks; None saves nothing.
            state: what to save, by name: objects with ``state_dict`` and ``load_state_dict``
                (torch's modules and optimizers among them), objects that TensorFlow tracks,
                boosters, dicts, lists, arrays, tensors. An entry is taken to be the same on all
                ranks unless it is a ``PerRank``.
            save: when ``step`` saves; every 10 minutes by default.
            keep: which checkpoints stay after a save: a number of the newest that are whole,
                or a policy. The newest whole one and pinned ones stay in any case.
            communicator: of the ranks that save together; this process alone by default.
            monitor: asked by ``step`` whether the job is to stop.
            local_tier: a folder on a disk or in the memory of each node, which a save reaches
                before it reaches ``url``: a process that is killed before it was uploaded loses
                nothing as long as the folder is there when it is started again.
            options: time limits.

        Raises:
            UsageError: a name or an entry that cannot be saved, or an argument out of range.
            NoPermissionError: nothing can be written there.
            EnvironmentFaultError: another run has the folder and is alive, or ranks do not see
                the same folder, or it is not one of checkpoints.
        """
        policy = as_policy(keep)
        if save is not None and not isinstance(save, SavePolicy):
            raise UsageError(f"save={save!r}: expected a policy, such as EverySteps(100)")
        check_state(state)
        self._state = state if isinstance(state, dict) else dict(state)
        self._communicator = communicator or Communicator.solo()
        self._options = options or CheckpointOptions()
        self._monitor: StopMonitor = monitor or _Unasked()
        self._schedule = Schedule(
            save or EverySeconds(_DEFAULT_SECONDS),
            self._communicator,
            timeout=self._options.timeout,
        )
        self._closed = False
        self._next_look = 0
        self._restored_step: int | None = None
        self._seen_step: int | None = None
        self._stopped_step: int | None = None
        self._root: OpenRoot | None = None
        self._saver: Saver | None = None
        if url is not None:
            storage = open_storage(url)
            self._root = OpenRoot(storage, self._state, self._communicator, self._options)
            if not self._options.read_only:
                self._saver = self._root.take(policy, local_tier)
                return
        self._next_look = _NEVER
        if url is None and self._communicator.rank == 0:
            log.warning("no checkpoint folder was given: nothing is saved, a restart begins anew")

    @property
    def url(self) -> str | None:
        """Where checkpoints lie, in full; None where nothing is saved."""
        return None if self._root is None else self._root.storage.url

    @property
    def last_saved_step(self) -> int | None:
        """The step that ``url`` is known to hold of this run: saved last, or restored."""
        committed = None if self._saver is None else self._saver.committed
        return self._restored_step if committed is None else committed.step

    @property
    def last_local_step(self) -> int | None:
        """The step that was saved last to the local tier, as far as this rank's part goes."""
        kept = None if self._saver is None else self._saver.kept
        return None if kept is None else kept.step

    @property
    def state(self) -> Mapping[str, Any]:
        """What is saved, by name; a view that cannot be changed."""
        return MappingProxyType(self._state)

    def replace(self, name: str, value: Any) -> None:
        """Save another object under ``name`` from now on, and restore into it.

        For frameworks that make an object anew, as ``xgboost.train`` does with its booster;
        every rank calls it. It stands in the dictionary that the manager was given, too. A save
        that is under way is of the object before.

        Raises:
            UsageError: there is no such entry, or ``value`` cannot be saved.
        """
        if name not in self._state:
            raise UsageError(
                f"replace({name!r}, …): the state has no such entry; it has "
                f"{', '.join(self._state) or 'nothing'}"
            )
        check_state({name: value})
        self._state[name] = value

    def step(self, step: int, metrics: Mapping[str, float] | None = None) -> bool:
        """Say that ``step`` is done, and save if it is time.

        Args:
            step: optimizer steps done so far, one more at each call.
            metrics: numbers to keep with the checkpoint, if one is saved.

        Returns:
            Whether a save has begun.

        Raises:
            Preempted: the job is to stop; the message says what is saved.
            OSError: a save failed; the checkpoints before it are untouched. In a job of one
                rank at the first step after that is known, with several at the next save.
        """
        # Every operation counts here: a step of torch leaves little of Python in the caches.
        self._seen_step = step
        monitor = self._monitor
        monitor.last_step = step
        if monitor.stirred and monitor.stop_now(step):
            self._stop(step, metrics)
        if step < self._next_look:
            return False
        return self._look(step, metrics)

    def save(
        self,
        step: int,
        metrics: Mapping[str, float] | None = None,
        *,
        blocking: bool = False,
    ) -> None:
        """Save the state as it is now; training may go on while it is written.

        A save that is still under way is waited for first, and what it failed with is raised
        in place of this one.

        Args:
            step: optimizer steps done so far, the same on all ranks.
            metrics: numbers to keep with the checkpoint; rank 0's count.
            blocking: whether to return only once it is committed, as ``wait`` does.

        Raises:
            UsageError: something in the state cannot be saved; the message names its place.
            OSError: the storage failed at each attempt; older checkpoints are untouched.
            DeadlineError: some ranks did not come; the message names them.
            EnvironmentFaultError: another run saves to the same folder.
            CheckpointDamagedError: a restore has overwritten some of the state and failed.
        """
        if self._closed:
            raise UsageError("save() after close(): the checkpoint manager was closed")
        if self._options.read_only:
            raise UsageError(f"save() to {self.url}, which was opened with read_only=True")
        self._begin(step, metrics, blocking=blocking)

    def _begin(
        self,
        step: int,
        metrics: Mapping[str, float] | None,
        *,
        blocking: bool = False,
        upload: bool | None = None,
    ) -> None:
        """Begin a save, to ``url`` or to the local tier alone; by turns if ``upload`` is None."""
        if self._saver is None:
            return
        refuse_torn(self._state, f"save() to {self.url}")
        began = time.monotonic()
        step = _checked_step(step)
        numbers = {name: float(value) for name, value in (metrics or {}).items()}
        together = self._communicator.world_size > 1
        try:
            self._saver.begin(step, numbers, upload=upload, urgent=blocking)
        except (Exception, TrainkitError):
            # What only this rank's state has, the others hear of where all of them settle.
            if not together or blocking or not self._saver.background:
                self._saver.settle()
            raise
        finally:
            self._next_look = 0
        if blocking or not self._saver.background:
            self.wait()
        self._schedule.stand_still(time.monotonic() - began)

    def save_unsaved(self) -> None:
        """Save the last step that ``step`` was told of, unless ``url`` has it already.

        For the end of a run, where the policy is silent. Raises what ``save`` raises.
        """
        if self._saver is None or self._closed or self._seen_step is None:
            return
        self._settle_whatever()
        if not self._is_uploaded(self._seen_step):
            self._begin(self._seen_step, None, upload=True)

    def save_for_stop(self, step: int, metrics: Mapping[str, float] | None = None) -> str:
        """Save ``step`` as well as the time until the kill allows, and say what came of it.

        Called by every rank at the same step. By how long the last saves took, it is saved to
        ``url``, or to the local tier alone, or not at all; what is under way is finished first.

        Raises what ``save`` raises.
        """
        if self._saver is None or self._closed:
            return "nothing is saved any more"
        self._settle_whatever()
        if self._seen_step is not None:  # a training that was over before counts its own steps
            step = max(step, self._seen_step)
        before, self._stopped_step = self._stopped_step, step
        if self._is_uploaded(step):
            return f"it is saved in {self.url}"
        if before == step:
            return "it was decided before what is saved of it"
        if waiting := not_begun(self._state):  # as where several trainings follow each other
            return f"nothing is saved of what was not trained yet: {', '.join(waiting)}"
        left = getattr(self._monitor, "time_left", lambda: None)()
        plan = self._saver.plan_stop(left)
        if plan is Plan.UPLOAD:
            self._begin(step, metrics, upload=True, blocking=True)
        elif plan is Plan.KEEP and not self._is_saved(step):
            self._begin(step, metrics, upload=False, blocking=True)
        self.wait()
        if plan is Plan.UPLOAD:
            return f"it is saved in {self.url}"
        if plan is Plan.KEEP and self.last_local_step == step:
            return f"it is saved on this node alone, since {self.url} would have taken too long"
        last = "nothing is" if self.last_saved_step is None else f"step {self.last_saved_step} is"
        return f"there was no time to save it; {last} saved in {self.url}"

    def _settle_whatever(self) -> None:
        """Let no failure of an earlier save stand in the way of the last one."""
        if self._saver is not None:
            self._saver.drop_copy()
        try:
            self.wait()
        except DeadlineError:
            raise
        except (Exception, TrainkitError) as error:  # the same on all ranks
            log.error("a save failed: %s; the state is saved again as it is now", error)

    def restore_latest(self, *, init_from: str | os.PathLike[str] | None = None) -> int | None:
        """Restore the newest checkpoint that is whole.

        Damaged ones are set aside with a warning, and the next older one is taken.

        Args:
            init_from: where this run's folder has no checkpoint yet, begin with the weights that
                lie here: a folder of checkpoints, of which the newest whole one counts, the
                folder of one step, or a safetensors file or folder. Only torch modules are
                loaded (in a state without any, entries that are arrays or tensors), from the
                entries of the same names; all else stays as it is.

        Returns:
            Its step, or None if none was ever committed to this run's folder.

        Raises:
            CheckpointDamagedError: there are checkpoints, and all are damaged. Large files of
                torch modules are read straight into their tensors, so that some of these may have
                been overwritten; such a state is not saved.
            EnvironmentFaultError: it is of another model or state; the message names the first
                difference, and it has changed nothing.
            InputMissingError: nothing lies at ``init_from``.
        """
        if self._root is not None:
            self.wait()
            found = self._root.restore_newest()
            if found is not None:
                step = self._restored(self._root, found)
                if self._saver is not None and not self._saver.background:
                    self.wait()
                return step
        if init_from is not None:
            timeout = self._options.timeout
            load_weights(init_from, self._state, self._communicator, timeout=timeout)
        refuse_torn(self._state, "restore_latest()")
        return None

    def restore(self, step: int) -> int:
        """Restore the checkpoint of ``step``, also one that was set aside before.

        Raises:
            InputMissingError: there is none; the message names those that are there.
            CheckpointDamagedError: it is damaged; see ``restore_latest``.
            EnvironmentFaultError: it is of another model or state.
        """
        if self._root is None:
            raise InputMissingError(f"step {step} cannot be restored: no checkpoint folder given")
        self.wait()
        return self._restored(self._root, self._root.restore_step(step))

    def latest_step(self) -> int | None:
        """The step that ``restore_latest`` would take, as far as sizes tell; asks one rank only."""
        found = () if self._root is None else self._root.steps()
        return next((folder.step for folder in found), None)

    def all_steps(self) -> list[int]:
        """Steps of all valid checkpoints, ascending; asks one rank only."""
        found = () if self._root is None else self._root.steps()
        return sorted({folder.step for folder in found})

    def watch(
        self, *, poll: float = 5.0, until: Callable[[], bool] = lambda: False
    ) -> Iterator[int]:
        """Restore each newest checkpoint as it appears, and yield its step; for an evaluator.

        Such a manager is best opened with ``CheckpointOptions(read_only=True)``, and may name a
        part of the run's state only. Those that were followed by a newer one are passed over.

        Args:
            poll: seconds between two looks.
            until: whether no more are to come, such as ``lambda: ctx.training_over``; the newest
                one is then still looked for once.
        """
        return new_steps(self, poll=poll, until=until)

    def wait(self) -> None:
        """Wait until what was saved is committed; every rank calls it.

        Raises:
            BaseException: what the save failed with, on every rank.
        """
        if self._saver is not None:
            self._saver.settle()
            self._saver.tidy()

    def close(self, *, failed: bool = False) -> None:
        """Wait, end saving, and leave the folder to other runs; any number of times.

        Raises what ``wait`` raises.

        Args:
            failed: whether the run ends by an error, so that no other rank may be waited for.
                What this rank has to write is still written, and rank 0 commits it if the others
                did as well, within a few times what a save takes (where that is known yet; and
                ``exit_timeout`` seconds at most).
        """
        closed, self._closed = self._closed, True
        self._next_look = _NEVER
        if self._root is None or closed:
            return
        try:
            if not failed:
                self.wait()
                if self._stopped_step is None:  # who comes back to this node finds it there
                    self._root.empty_tier()
        finally:
            self._root.leave(failed=failed)

    def _look(self, step: int, metrics: Mapping[str, float] | None) -> bool:
        """Look after the save under way, and ask the policy if it is time for that."""
        idle = self._saver is None or self._saver.look()
        if step < self._schedule.next_look:
            if idle:
                self._next_look = self._schedule.next_look
            return False
        due = self._schedule.due(step)
        self._next_look = self._schedule.next_look if idle else 0
        if not due or self._is_saved(step) or self._is_to_be_skipped(idle):
            return False
        self.save(step, metrics)
        return True

    def _is_saved(self, step: int) -> bool:
        """Whether ``step`` is saved, or on its way."""
        under_way = None if self._saver is None else self._saver.in_flight
        if under_way is not None:
            return step == under_way
        return step in (self.last_saved_step, self.last_local_step)

    def _is_uploaded(self, step: int) -> bool:
        """Whether ``step`` is saved to ``url``, or on its way there."""
        saver = self._saver
        if saver is not None and saver.in_flight is not None:
            return step == saver.in_flight and saver.uploading
        return step == self.last_saved_step

    def _is_to_be_skipped(self, idle: bool) -> bool:
        """Whether all ranks leave a save out, since rank 0's is still under way."""
        if self._options.when_busy == "wait":
            return False
        timeout = self._options.timeout
        skipped = bool(self._communicator.broadcast_object(not idle, timeout=timeout))
        if skipped and self._communicator.rank == 0:
            log.warning("a save is left out: the one before is still being written")
        return skipped

    def _stop(self, step: int, metrics: Mapping[str, float] | None) -> None:
        exit_code = getattr(self._monitor, "exit_code", ExitCode.PREEMPTED)
        if self._saver is None:
            why = (
                "no checkpoint folder was given" if self.url is None else f"{self.url} is only read"
            )
            raise Preempted(
                f"stopped after step {step} as asked; nothing is saved, since {why}",
                exit_code=exit_code,
            )
        raise Preempted(
            f"stopped after step {step} as asked; {self.save_for_stop(step, metrics)}",
            exit_code=exit_code,
        )

    def _restored(self, root: OpenRoot, found: Found) -> int:
        self._restored_step = found.folder.step if found.uploaded else None
        self._schedule.restart()
        self._next_look = 0 if self._saver is not None else _NEVER
        if self._communicator.rank == 0:
            log.info("restored step %d from %s", found.folder.step, root.place(found))
        return found.folder.step


class _Unasked:
    """The monitor of a manager that nobody stops."""

    def __init__(self) -> None:
        self.last_step: int | None = None
        self.stirred = False

    def stop_now(self, step: int) -> bool:
        return False


def _checked_step(step: int) -> int:
    try:
        step = operator.index(step)
    except TypeError:
        raise UsageError(f"step={step!r}: expected a whole number of steps") from None
    if step < 0:
        raise UsageError(f"step={step}: expected 0 or more steps")
    return step
