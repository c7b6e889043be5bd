"""A StorageWriter for ``dcp.save`` and ``dcp.async_save``."""

import dataclasses
import functools
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from trainkit.checkpoint.adapters.values import to_json_bytes
from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.checksums import FileRecord
from trainkit.checkpoint.format.layout import MANIFEST, StepFolder
from trainkit.checkpoint.format.manifest import Entry
from trainkit.checkpoint.interop.committing import commit, discard, hold
from trainkit.checkpoint.interop.dcp.identifiers import Identified, identify
from trainkit.checkpoint.interop.dcp.items import RankItems, Stored
from trainkit.checkpoint.interop.dcp.metadata import ENTRY, METADATA_PATH, Piece, encode_metadata
from trainkit.checkpoint.interop.files import FileWriter
from trainkit.checkpoint.options import CheckpointOptions
from trainkit.checkpoint.save.generation import Claim, await_claim, refuse_overtaken
from trainkit.checkpoint.save.lease import Lease
from trainkit.errors import (
    CheckpointDamagedError,
    DeadlineError,
    EnvironmentFaultError,
    UsageError,
)
from trainkit.storage import Storage, open_storage
from trainkit.waiting import Deadline, wait_until

__all__ = ["TrainkitWriter"]

_BEGUN = "dcp/begun.json"
"""Shows ranks whose planner caches plans where this save goes."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the coordinator tells a rank: where to write, and as whom."""

    url: str
    folder: StepFolder
    rank: int
    claim: Claim


class TrainkitWriter(StorageWriter):
    """Keeps what ``torch.distributed.checkpoint`` saves as trainkit keeps checkpoints.

    A checkpoint counts from the moment its manifest is there, on all stores; older ones are
    never touched; what fails in any thread of any rank fails the save. One writer serves any
    number of saves, one after the other.
    """

    def __init__(
        self,
        url: str | os.PathLike[str] | None = None,
        *,
        step: int | None = None,
        allow_pickle: bool = False,
        threads: int = 2,
        options: CheckpointOptions | None = None,
    ) -> None:
        """Describe where to save; nothing is opened yet.

        Args:
            url: root of checkpoints, a local path or a URL such as ``s3://bucket/run1``; None
                takes what stands before the last name of the ``checkpoint_id`` of a save.
            step: to save as, unless a save gives a ``checkpoint_id`` that ends in a number.
            allow_pickle: whether values that JSON cannot hold are pickled, as DCP does. Only a
                ``TrainkitReader`` that is told the same will load them.
            threads: files that this rank writes at the same time.
            options: attempts and time limits.
        """
        if threads < 1:
            raise UsageError(f"threads={threads}: expected at least 1")
        self.checkpoint_id: str | os.PathLike[str] | None = None
        self._url = url
        self._step = step
        self._allow_pickle = allow_pickle
        self._threads = threads
        self._options = options or CheckpointOptions()
        self._lease: Lease | None = None
        self._leased = ""
        self._attempts = 0
        self._assigned: Assignment | None = None
        self._begun: Mapping[str, FileRecord] = {}
        self._last: StepFolder | None = None
        self._thread = 0

    def close(self) -> None:
        """Leave the root to other runs. Happens with the object, and when the process ends."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def __getstate__(self) -> dict[str, Any]:
        # For DCP's process that saves: a lease is this process's own.
        return {**self.__dict__, "_lease": None, "_leased": ""}

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """See ``StorageWriter``: whether a step can be told from it."""
        try:
            identify(None, None, checkpoint_id)
        except UsageError:
            return False
        return True

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """See ``StorageWriter``."""
        self.checkpoint_id = checkpoint_id

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """See ``StorageWriter``.

        Raises:
            UsageError: it cannot be told where to save, and as which step.
        """
        if kwargs.get("use_collectives") is False:
            raise UsageError("use_collectives=False saves no whole checkpoint; leave it out")
        where = self._where()
        if where.step is None:
            raise UsageError(
                f"saving to {where.url}, but as which step? Expected TrainkitWriter(url, step=…), "
                f"or a checkpoint_id that ends in it, as in dcp.save(…, checkpoint_id='100')"
            )
        self._assigned = None
        self._thread = threading.get_ident()

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """See ``StorageWriter``."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Claim the root at the first save, and give all ranks a folder that nobody had before.

        Raises:
            NoPermissionError: nothing can be written there.
            EnvironmentFaultError: the root is another kind of folder, or another run has it.
        """
        self._refuse_second_save()
        where, storage = self._where(), self._storage()
        mine = self._hold(storage)
        refuse_overtaken(storage, mine.generation)
        for left in catalog.uncommitted(storage):
            if left.generation == mine.generation:  # of a save of ours that failed
                discard(storage, left)
        folder = StepFolder(where.step or 0, mine.generation, self._attempts)
        self._attempts += 1
        self._begun = {}
        if not all(plan.usable for plan in plans):
            writer = FileWriter(storage, folder.name, self._options)
            writer.write(_BEGUN, lambda: [to_json_bytes({"ranks": len(plans)})])
            self._begun = writer.files
        assignments = [Assignment(storage.url, folder, rank, mine) for rank in range(len(plans))]
        self._assigned = assignments[0]
        return [
            dataclasses.replace(plan, storage_data=assignment)
            for plan, assignment in zip(plans, assignments, strict=True)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write all of this rank's items.

        Raises:
            UsageError: something cannot be saved; the message names its place.
            OSError: the storage failed at each attempt.
            EnvironmentFaultError: ranks do not see the same folder.
        """
        self._refuse_second_save()
        storage = self._storage()
        assigned = self._assignment(storage, plan)
        self._last = assigned.folder
        writer = FileWriter(storage, assigned.folder.name, self._options)
        try:
            rank = RankItems(
                writer, assigned.folder, assigned.rank, planner, allow_pickle=self._allow_pickle
            )
            results = rank.write(plan, self._threads)
        except BaseException:
            writer.discard()
            raise
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit: every item is there, every file is seen, and the manifest is created last.

        Raises:
            CheckpointDamagedError: ranks did not write what was planned.
            DeadlineError: a file is not to be seen; the message names it.
            EnvironmentFaultError: another run has taken over the root.
        """
        self._refuse_second_save()
        assigned = self._assigned
        if assigned is None:
            raise AssertionError("the coordinator has prepared the plan")  # a bug of ours
        storage = self._storage()
        try:
            self._commit(storage, assigned.folder, metadata, results)
        except BaseException:
            discard(storage, assigned.folder)
            raise

    def _commit(
        self,
        storage: Storage,
        folder: StepFolder,
        metadata: Metadata,
        results: list[list[WriteResult]],
    ) -> None:
        files = dict(self._begun)
        pieces: dict[MetadataIndex, Piece] = {}
        for rank, of_rank in enumerate(results):
            for result in of_rank:
                stored: Stored = result.storage_data
                if stored.folder != folder:
                    raise CheckpointDamagedError(
                        f"rank {rank} wrote to {stored.folder.name} and not to {folder.name}"
                    )
                files.update(stored.files)
                pieces[result.index] = stored.piece
        deadline = Deadline(self._options.visible_within)
        for path, record in files.items():
            wait_until(
                functools.partial(_is_there, storage, f"{folder.name}/{path}", record),
                what=f"{storage.url}/{folder.name}/{path}, as its rank wrote it",
                deadline=deadline,
            )
        writer = FileWriter(storage, folder.name, self._options)
        writer.write(METADATA_PATH, lambda: [encode_metadata(metadata, pieces)])
        files.update(writer.files)
        documents = tuple(sorted({path.rpartition(".")[0] for path in files}))
        entries = {ENTRY: Entry(ENTRY, documents)}
        commit(storage, folder, files, entries, world_size=len(results))

    def _assignment(self, storage: Storage, plan: SavePlan) -> Assignment:
        """Where to write: as the coordinator said in this save.

        Raises:
            EnvironmentFaultError: this rank does not see what the coordinator wrote.
        """
        given, timeout = plan.storage_data, self._options.visible_within
        if not isinstance(given, Assignment):
            raise UsageError("the plan was not made with this TrainkitWriter")
        if self._assigned is not None:  # the coordinator itself
            return self._assigned
        if self._is_of_this_save(storage, given):
            await_claim(storage, given.claim, rank=given.rank, timeout=timeout)
            return given
        # A planner that caches plans brought back an earlier save's assignment with its plan.
        return dataclasses.replace(
            given, url=storage.url, folder=self._begun_folder(storage, given)
        )

    def _begun_folder(self, storage: Storage, given: Assignment) -> StepFolder:
        """The folder that the coordinator has begun for this save, newer than ``given``."""
        step, age = self._where().step, given.folder.age if given.url == storage.url else (-1, -1)

        def begun() -> list[StepFolder]:
            return [
                folder
                for folder in catalog.uncommitted(storage)
                if folder.step == step
                and folder.age > age
                and storage.size(f"{folder.name}/{_BEGUN}") is not None
            ]

        deadline = Deadline(self._options.visible_within)
        try:
            wait_until(lambda: bool(begun()), what="rank 0's folder", deadline=deadline)
        except DeadlineError:
            raise EnvironmentFaultError(
                f"the checkpoint path is not shared: rank {given.rank} does not see in "
                f"{storage.url} the folder of step {step} that rank 0 began, in {given.url} as far "
                f"as is known here. Give the same folder on all ranks, on a volume that all mount."
            ) from None
        return begun()[0]

    def _refuse_second_save(self) -> None:
        # DCP makes all calls of one save in one thread.
        if self._thread != threading.get_ident():
            raise UsageError(
                "another save with this TrainkitWriter began before this one was done: wait for "
                "the future of async_save first, or give each its own writer"
            )

    def _is_of_this_save(self, storage: Storage, given: Assignment) -> bool:
        return (
            given.url == storage.url
            and given.folder.step == self._where().step
            and given.folder != self._last
            and storage.size(f"{given.folder.name}/{MANIFEST}") is None
        )

    def _hold(self, storage: Storage) -> Claim:
        """This writer's claim of the root, kept by signs of life from its first save on."""
        if self._leased != storage.url:
            self.close()
        if self._lease is None:
            self._lease, self._leased = hold(storage, self._options), storage.url
        return self._lease.claim

    def _where(self) -> Identified:
        return identify(self._url, self._step, self.checkpoint_id)

    def _storage(self) -> Storage:
        return open_storage(self._where().url)


def _is_there(storage: Storage, path: str, record: FileRecord) -> bool:
    return storage.size(path) == record.size
