"""A root of checkpoints, opened for one run on all ranks: its storage, hold, tier and saver."""

import heapq
import logging
import os
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.layout import StepFolder
from trainkit.checkpoint.holding import Hold, hold_together
from trainkit.checkpoint.leftovers import upload_leftover
from trainkit.checkpoint.options import CheckpointOptions
from trainkit.checkpoint.restoring import Found, Restorer
from trainkit.checkpoint.retention import RetentionPolicy
from trainkit.checkpoint.save.retention import Retention
from trainkit.checkpoint.save.tiers import LocalTier
from trainkit.checkpoint.saving import Saver
from trainkit.checkpoint.tiers import clear_tier, open_tier
from trainkit.coordination import Communicator, PrefixedStore
from trainkit.errors import DeadlineError
from trainkit.storage import Storage

__all__ = ["OpenRoot"]

log = logging.getLogger(__name__)

_SLOWER = 5.0
"""How many times longer than the last ones a save may take that ends in a failing run …"""
_AT_LEAST = 10.0
"""… or so many seconds: storage has bad moments, too."""


@dataclass(slots=True, weakref_slot=True, eq=False)
class OpenRoot:
    """What a manager has where checkpoints can be; each method but ``steps`` is for all ranks."""

    storage: Storage
    state: Mapping[str, Any]
    communicator: Communicator
    options: CheckpointOptions
    saver: Saver | None = None
    """None where nothing is ever written."""
    hold: Hold | None = None
    tier: LocalTier | None = None

    def take(self, policy: RetentionPolicy, local_tier: str | os.PathLike[str] | None) -> Saver:
        """Take the root for this run, until ``leave``, to save to it.

        Args:
            policy: which checkpoints stay.
            local_tier: folder on each node that saves reach before; None for none.

        Raises:
            NoPermissionError: nothing can be written there.
            EnvironmentFaultError: another run has it and is alive, or ranks do not see the same
                folder, or it is not one of checkpoints.
            UsageError: ``local_tier`` is no folder on a node.
        """
        options, communicator = self.options, self.communicator
        self.hold = hold_together(self.storage, communicator, options)
        generation = self.hold.generation
        try:
            self.tier = open_tier(
                local_tier, self.storage, communicator, generation, timeout=options.timeout
            )
        except BaseException:
            self.hold.release()
            raise
        saver = self.saver = Saver(
            self.storage,
            self.state,
            communicator,
            options,
            generation,
            # A run may have several managers, and their generations are often the same.
            PrefixedStore(f"checkpoint/{self.hold.name}", communicator.store),
            Retention(self.storage, policy, generation=generation),
            self.tier,
        )
        # At exit too: what was being saved when a script ends is still committed.
        weakref.finalize(self, saver.finish, options.exit_timeout)
        return saver

    def restore_newest(self) -> Found | None:
        """Restore the newest checkpoint that is whole, wherever it lies; None if there is none.

        Raises what ``Restorer.newest`` raises, and what saving does where only the nodes still
        have the newest one.
        """
        self._upload_leftover()
        found = self._restorer.newest()
        if found is not None and self.saver is not None:
            self.saver.forget()
            if not found.uploaded:
                # What the run before could not upload any more, this one does.
                self.saver.begin_copy(found.folder)
        return found

    def restore_step(self, step: int) -> Found:
        """Restore the checkpoint of ``step``; raises what ``Restorer.step`` raises."""
        found = self._restorer.step(step)
        if self.saver is not None:
            self.saver.forget()
        return found

    def steps(self) -> Iterator[StepFolder]:
        """Checkpoints that could be restored, newest first, as far as sizes tell."""
        there = (folder for folder, _ in catalog.valid(self.storage))
        near = () if self._near is None else (folder for folder, _ in catalog.valid(self._near))
        return heapq.merge(there, near, key=lambda folder: folder.age, reverse=True)

    def place(self, found: Found) -> str:
        """Where a checkpoint lies, for people."""
        above = self.tier.folder if found.local and self.tier is not None else self.storage.url
        return f"{above}/{found.folder.name}"

    def empty_tier(self) -> None:
        """Bring what only the local tier has to the storage, and give its space back.

        Raises what saving raises.
        """
        tier, saver = self.tier, self.saver
        if tier is None or saver is None:
            return
        # Rank 0's word, since another rank's tier may have failed; and all have settled by then. A
        # rank that ended by an error does not come: no long wait where only space is at stake.
        own, options = (saver.kept, saver.committed), self.options
        timeout = options.timeout if _is_only_near(*own) else options.exit_timeout
        try:
            kept, committed = self.communicator.all_gather_object(own, timeout=timeout)[0]
        except DeadlineError as error:
            log.warning("the local tier is left as it is: %s", error)
            return
        if kept is not None and _is_only_near(kept, committed):
            if tier.shared:
                before = saver.committed
                saver.begin_copy(kept)
                saver.settle()
                saver.tidy()
                done = saver.committed is not before  # otherwise it came to nothing
            else:
                done = self._upload_leftover()
        else:  # of what runs before this one have left nothing is known
            done = committed is not None
        if done and (self.communicator.rank == 0 or not tier.shared):
            clear_tier(tier)

    def leave(self, *, failed: bool = False) -> None:
        """Wait for this rank's own work, and leave the root to others; asks no other rank.

        Args:
            failed: whether the run ends by an error: by the loss of another rank, perhaps, whose
                part of a save will never come.
        """
        if self.saver is not None:
            longest = self.options.exit_timeout
            if failed and (usual := self.saver.pace.upload) is not None:
                longest = min(longest, max(_AT_LEAST, _SLOWER * usual))
            self.saver.finish(longest)
        if self.hold is not None:
            self.hold.release()

    def _upload_leftover(self) -> bool:
        if self.saver is None or self.tier is None:
            return False
        return upload_leftover(
            self.tier, self.storage, self.communicator, self.options, self.saver.name_next
        )

    @property
    def _near(self) -> Storage | None:
        """The local tier, where it is a root of checkpoints itself."""
        return self.tier.storage() if self.tier is not None and self.tier.shared else None

    @property
    def _restorer(self) -> Restorer:
        return Restorer(
            self.storage,
            self.state,
            self.communicator,
            self.options.timeout,
            marks=not self.options.read_only,
            near=self._near,
        )


def _is_only_near(kept: StepFolder | None, committed: StepFolder | None) -> bool:
    """Whether the local tier has something newer than the root."""
    return kept is not None and (committed is None or kept.age > committed.age)
