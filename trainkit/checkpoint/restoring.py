"""Restoring on all ranks at once, from the newest checkpoint that is whole on each."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainkit.checkpoint.adapters.state import Restoration
from trainkit.checkpoint.agreement import Outcome, on_all_ranks
from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.layout import StepFolder
from trainkit.checkpoint.format.manifest import TornManifestError
from trainkit.checkpoint.load.reader import StepReader
from trainkit.coordination import Communicator
from trainkit.errors import CheckpointDamagedError, InputMissingError
from trainkit.state import PerRank
from trainkit.storage import Storage

__all__ = ["Restorer"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Restorer:
    """Restores a state; each method is called by every rank.

    ``timeout`` is in seconds, for the slowest rank to read its files. Without ``marks`` damaged
    checkpoints are passed over and not marked, for those who only read.
    """

    storage: Storage
    state: Mapping[str, Any]
    communicator: Communicator
    timeout: float
    marks: bool = True

    def newest(self) -> StepFolder | None:
        """Restore the newest checkpoint that is whole on all ranks; None if none was committed.

        Raises:
            CheckpointDamagedError: checkpoints were committed, and all are damaged.
            EnvironmentFaultError: the checkpoint does not fit the state, or the folder is not
                one of checkpoints.
        """
        damaged = []
        for folder in self._listed():
            outcome, restoration = self._prepare(folder)
            if not _is_damage(outcome):
                self._finish(outcome, restoration)
                return folder
            reason = outcome.failures[0].text
            self._set_aside(folder, reason)
            if not _is_torn(outcome):
                damaged.append(f"{folder.name} ({reason})")
        if damaged:
            raise CheckpointDamagedError(
                f"{self.storage.url} holds no checkpoint that is whole: {'; '.join(damaged)}. "
                f"Put back an undamaged copy, or start anew with another folder."
            )
        return None

    def step(self, step: int) -> StepFolder:
        """Restore the last checkpoint of ``step``, also one that was set aside.

        Raises:
            InputMissingError: there is none; the message names the steps that are there.
            CheckpointDamagedError: it is damaged.
            EnvironmentFaultError: it does not fit the state.
        """
        folders = self._listed(set_aside=True)
        of_step = [folder for folder in folders if folder.step == step]
        if not of_step:
            steps = ", ".join(map(str, sorted({folder.step for folder in folders}))) or "none"
            raise InputMissingError(
                f"{self.storage.url} has no checkpoint of step {step}; it has {steps}"
            )
        for folder in of_step:
            outcome, restoration = self._prepare(folder)
            # One whose save was cut off must not hide the older one that it was to replace.
            if not _is_torn(outcome) or folder is of_step[-1]:
                break
        self._finish(outcome, restoration)
        return folder

    def _prepare(self, folder: StepFolder) -> tuple[Outcome[int], list[Restoration]]:
        """Read and check all of ``folder``; the result is the number of ranks that saved it."""
        found: list[Restoration] = []
        rank, world_size = self.communicator.rank, self.communicator.world_size

        def prepare() -> int:
            reader = StepReader(self.storage, folder)
            found.append(reader.prepare(self.state, rank, world_size))
            return reader.manifest.world_size

        return on_all_ranks(self.communicator, prepare, timeout=self.timeout), found

    def _finish(self, outcome: Outcome[int], found: list[Restoration]) -> None:
        saved_world = outcome.check()[0]
        on_all_ranks(self.communicator, found[0].apply, timeout=self.timeout).check()
        if saved_world != self.communicator.world_size:
            self._tell_of_other_world(saved_world)

    def _listed(self, *, set_aside: bool = False) -> list[StepFolder]:
        """Committed folders as rank 0 sees them: listings of a share may differ for a moment."""

        def look() -> list[StepFolder]:
            if self.communicator.rank != 0:
                return []
            catalog.refuse_foreign(self.storage)
            root = catalog.look(self.storage)
            if set_aside:
                folders = [*root.committed, *root.set_aside]
                return sorted(folders, key=lambda folder: folder.age, reverse=True)
            self._tell_of_skipped(root)
            return root.committed

        return on_all_ranks(self.communicator, look, timeout=self.timeout).check()[0]

    def _set_aside(self, folder: StepFolder, reason: str) -> None:
        if self.communicator.rank != 0:
            return
        log.warning("%s is passed over from now on: %s", folder.name, reason)
        if not self.marks:
            return
        try:
            catalog.quarantine(self.storage, folder, reason)
        except OSError as error:
            log.warning("%s could not be marked as damaged: %s", folder.name, error)

    def _tell_of_skipped(self, root: catalog.Root) -> None:
        newest = root.committed[0].age if root.committed else (0, 0)
        skipped = [folder.name for folder in root.uncommitted if folder.age > newest]
        if skipped:
            log.warning("skipped, since their save was cut off: %s", ", ".join(skipped))
        if root.set_aside:
            names = ", ".join(sorted(folder.name for folder in root.set_aside))
            log.warning("skipped, since they were found damaged before: %s", names)
        if root.gone:
            log.warning("pinned, and not there any more: %s", ", ".join(root.gone))

    def _tell_of_other_world(self, saved_world: int) -> None:
        if self.communicator.rank != 0:
            return
        own = ", ".join(n for n, v in self.state.items() if isinstance(v, PerRank)) or "none here"
        log.warning(
            "saved by %d rank(s) and restored by %d: random generators were left as they are, "
            "and entries that each rank has its own of (%s) went only to ranks that had one; "
            "random numbers will differ from an unbroken run",
            saved_world,
            self.communicator.world_size,
            own,
        )


def _is_damage(outcome: Outcome[int]) -> bool:
    """Whether the checkpoint itself is at fault; the same answer on all ranks."""
    kind = CheckpointDamagedError.__name__
    return bool(outcome.failures) and all(f.kind == kind for f in outcome.failures)


def _is_torn(outcome: Outcome[int]) -> bool:
    """Whether the save of the checkpoint was cut off, so that nobody was told of it."""
    return _is_damage(outcome) and outcome.failures[0].text.startswith(TornManifestError.__name__)
