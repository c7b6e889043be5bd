"""Saving on all ranks at once: attempts, the commit, and what goes afterwards."""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import trainkit
from trainkit.checkpoint.agreement import Outcome, on_all_ranks
from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.layout import StepFolder
from trainkit.checkpoint.options import CheckpointOptions
from trainkit.checkpoint.save.generation import Claim, await_claim, claim
from trainkit.checkpoint.save.retention import keep_newest, remove_step
from trainkit.checkpoint.save.writer import StepWriter
from trainkit.coordination import Communicator
from trainkit.errors import TrainkitError, UsageError
from trainkit.storage import Storage

__all__ = ["Saver", "claim_together"]

log = logging.getLogger(__name__)


def claim_together(storage: Storage, communicator: Communicator, options: CheckpointOptions) -> int:
    """Claim a generation on rank 0, and check that every rank sees the claim.

    Raises:
        NoPermissionError: nothing can be written there.
        EnvironmentFaultError: ranks do not see the same folder, or it is not one of checkpoints.
    """

    def take() -> Claim | None:
        if communicator.rank != 0:
            return None
        catalog.refuse_foreign(storage)
        return claim(storage)

    taken = on_all_ranks(communicator, take, timeout=options.timeout).check()[0]
    if taken is None:
        raise AssertionError("rank 0 claims or raises")  # a bug of ours, not a fault

    def see() -> None:
        if communicator.rank != 0:
            await_claim(storage, taken, rank=communicator.rank, timeout=options.visible_within)

    on_all_ranks(communicator, see, timeout=options.timeout).check()
    return taken.generation


@dataclass(slots=True)
class Saver:
    """Saves a state under one generation of a root; ``save`` is called by every rank."""

    storage: Storage
    state: Mapping[str, Any]
    communicator: Communicator
    options: CheckpointOptions
    generation: int
    keep: int
    _attempts: int = field(default=0, init=False)

    def save(self, step: int, metrics: Mapping[str, float]) -> None:
        """Save and commit, trying again while the storage answers with I/O errors.

        Raises:
            UsageError: something in the state cannot be saved, or ranks save different steps.
            OSError: the storage failed at each attempt.
            DeadlineError: some ranks did not come; the message names them.
            EnvironmentFaultError: another run saves to the same root.
        """
        for pause in self._pauses():
            folder = StepFolder(step, self.generation, self._attempts)
            self._attempts += 1
            outcome = self._try(folder, metrics)
            if not outcome.failures:
                break
            self._discard(folder)
            if not outcome.io_only or pause is None:
                outcome.check()
            log.warning(
                "saving step %d failed (%s); trying again in %.0f s",
                step,
                outcome.failures[0].text,
                pause,
            )
            time.sleep(pause or 0.0)
        self._remove_old()

    def _pauses(self) -> Iterator[float | None]:
        """Seconds to wait after each attempt, and None after the last one."""
        for number in range(self.options.attempts - 1):
            yield self.options.pause * 2**number
        yield None

    def _try(self, folder: StepFolder, metrics: Mapping[str, float]) -> Outcome[Any]:
        writer = StepWriter(self.storage, folder)
        rank = self.communicator.rank

        def write() -> tuple[int, str]:
            return folder.step, writer.write_part(self.state, rank)

        written = self._on_all_ranks(write)
        if written.failures:
            return written

        def commit() -> None:
            parts = written.check()
            _check_same_step([step for step, _ in parts])
            if rank == 0:
                writer.commit(
                    [checksum for _, checksum in parts],
                    written_by=f"trainkit {trainkit.__version__}",
                    metrics=metrics,
                    visible_within=self.options.visible_within,
                )

        return self._on_all_ranks(commit)

    def _on_all_ranks(self, action: Any) -> Outcome[Any]:
        return on_all_ranks(self.communicator, action, timeout=self.options.timeout)

    def _discard(self, folder: StepFolder) -> None:
        """Remove what an attempt that failed has written; it is no checkpoint in any case."""
        if self.communicator.rank != 0:
            return
        try:
            remove_step(self.storage, folder)
        except (OSError, TrainkitError) as error:
            log.warning("what is left of %s could not be removed: %s", folder.name, error)

    def _remove_old(self) -> None:
        """Old checkpoints go only after a newer one is there; a failure costs space alone."""
        if self.communicator.rank != 0:
            return
        try:
            keep_newest(self.storage, self.keep, generation=self.generation)
        except (OSError, TrainkitError) as error:
            log.warning("old checkpoints could not be removed: %s", error)


def _check_same_step(steps: list[int]) -> None:
    if len(set(steps)) > 1:
        raise UsageError(
            f"ranks save different steps: {', '.join(map(str, steps))} from rank 0 on. Every "
            f"rank has to call save() and step() after the same steps."
        )
