"""Restoring on all ranks at once, from the newest checkpoint that is whole on each."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainkit.checkpoint.adapters.state import Restoration
from trainkit.checkpoint.agreement import Outcome, give_back_together, on_all_ranks
from trainkit.checkpoint.collecting import not_collecting
from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.layout import StepFolder
from trainkit.checkpoint.format.manifest import TornManifestError
from trainkit.checkpoint.load.reader import StepReader
from trainkit.coordination import Communicator
from trainkit.errors import CheckpointDamagedError, InputMissingError
from trainkit.state import PerRank
from trainkit.storage import Storage

__all__ = ["Found", "Restorer"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint, and where it lies."""

    folder: StepFolder
    local: bool = False
    """Whether it is the copy in the local tier."""
    uploaded: bool = True
    """Whether the root has it as well."""


@dataclass(frozen=True, slots=True)
class Restorer:
    """Restores a state; each method is called by every rank.

    ``timeout`` is in seconds, for the slowest rank to read its files. Without ``marks`` damaged
    checkpoints are passed over and not marked, for those who only read. ``near`` is a local
    tier that all ranks see: of a checkpoint that is in both, its copy is read.
    """

    storage: Storage
    state: Mapping[str, Any]
    communicator: Communicator
    timeout: float
    marks: bool = True
    near: Storage | None = None

    def newest(self) -> Found | None:
        """Restore the newest checkpoint that is whole on all ranks; None if none was committed.

        Raises:
            CheckpointDamagedError: checkpoints were committed, and all are damaged.
            EnvironmentFaultError: the checkpoint does not fit the state, or the folder is not
                one of checkpoints.
        """
        damaged = []
        for found in self._listed():
            outcome = self._restore(found)
            if not _is_damage(outcome):
                outcome.check()
                return found
            reason = outcome.failures[0].text
            self._set_aside(found, reason)
            if not _is_torn(outcome):
                damaged.append(f"{found.folder.name} ({reason})")
        if damaged:
            raise CheckpointDamagedError(
                f"{self.storage.url} holds no checkpoint that is whole: {'; '.join(damaged)}. "
                f"Put back an undamaged copy, or start anew with another folder."
            )
        return None

    def step(self, step: int) -> Found:
        """Restore the last checkpoint of ``step``, also one that was set aside.

        Raises:
            InputMissingError: there is none; the message names the steps that are there.
            CheckpointDamagedError: it is damaged.
            EnvironmentFaultError: it does not fit the state.
        """
        there = self._listed(set_aside=True)
        of_step = [found for found in there if found.folder.step == step]
        if not of_step:
            steps = ", ".join(map(str, sorted({one.folder.step for one in there}))) or "none"
            raise InputMissingError(
                f"{self.storage.url} has no checkpoint of step {step}; it has {steps}"
            )
        for found in of_step:
            outcome = self._restore(found)
            # One whose save was cut off must not hide the older one that it was to replace.
            passing = _is_damage(outcome) if found.local else _is_torn(outcome)
            if not passing or found is of_step[-1]:
                break
        outcome.check()
        return found

    def _restore(self, found: Found) -> Outcome[Any]:
        """Restore a checkpoint on all ranks, or on none."""
        rank, world_size = self.communicator.rank, self.communicator.world_size
        saved_world = world_size

        def prepare() -> Restoration:
            nonlocal saved_world
            reader = StepReader(self._place(found), found.folder)
            saved_world = reader.manifest.world_size
            with not_collecting():
                return reader.prepare(self.state, rank, world_size)

        outcome = give_back_together(self.communicator, prepare, timeout=self.timeout)
        if not outcome.failures and saved_world != world_size:
            self._tell_of_other_world(saved_world)
        return outcome

    def _place(self, found: Found) -> Storage:
        return self.near if found.local and self.near is not None else self.storage

    def _listed(self, *, set_aside: bool = False) -> list[Found]:
        """Checkpoints as rank 0 sees them, newest first: listings of a share may differ."""

        def look() -> list[Found]:
            if self.communicator.rank != 0:
                return []
            catalog.refuse_foreign(self.storage)
            root = catalog.look(self.storage)
            folders = list(root.committed)
            if set_aside:
                folders += root.set_aside
            else:
                self._tell_of_skipped(root)
            there = set(folders)
            near = [] if self.near is None else catalog.committed(self.near)
            listed = [Found(folder, local=True, uploaded=folder in there) for folder in near]
            listed += map(Found, folders)
            return sorted(listed, key=lambda one: (one.folder.age, one.local), reverse=True)

        return on_all_ranks(self.communicator, look, timeout=self.timeout).check()[0]

    def _set_aside(self, found: Found, reason: str) -> None:
        if self.communicator.rank != 0:
            return
        name = found.folder.name
        log.warning("%s is passed over from now on: %s", name, reason)
        if not self.marks:
            return
        try:
            if found.local:  # what was a copy is nothing any more
                self._place(found).delete(name)
            else:
                catalog.quarantine(self.storage, found.folder, reason)
        except OSError as error:
            log.warning("%s could not be marked as damaged: %s", name, error)

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


def _is_damage(outcome: Outcome[Any]) -> bool:
    """Whether the checkpoint itself is at fault; the same answer on all ranks."""
    kind = CheckpointDamagedError.__name__
    return bool(outcome.failures) and all(f.kind == kind for f in outcome.failures)


def _is_torn(outcome: Outcome[Any]) -> bool:
    """Whether the save of the checkpoint was cut off, so that nobody was told of it."""
    return _is_damage(outcome) and outcome.failures[0].text.startswith(TornManifestError.__name__)
