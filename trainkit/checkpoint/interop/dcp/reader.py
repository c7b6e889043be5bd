"""A StorageReader for ``dcp.load``: reads what this rank needs, and verifies it on the way."""

import dataclasses
import os
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.boxes import box_bytes
from trainkit.checkpoint.interop.dcp.identifiers import identify
from trainkit.checkpoint.interop.dcp.opened import Opened
from trainkit.checkpoint.interop.dcp.tensors import box_of
from trainkit.checkpoint.load.ranges import RangeReader, runs
from trainkit.errors import EnvironmentFaultError, TrainkitError, UsageError

__all__ = ["TrainkitReader"]


class TrainkitReader(StorageReader):
    """Gives ``torch.distributed.checkpoint`` what a ``TrainkitWriter`` has kept.

    Every byte is verified before it reaches a tensor. No pickle of the checkpoint is run,
    unless that is allowed here as it was at the save.
    """

    def __init__(
        self,
        url: str | os.PathLike[str] | None = None,
        *,
        step: int | None = None,
        allow_pickle: bool = False,
        threads: int = 2,
    ) -> None:
        """Describe what to load; nothing is read yet.

        Args:
            url: root of checkpoints, or the folder of one step; None takes what stands before
                the last name of the ``checkpoint_id`` of a load.
            step: to load; the newest committed one by default. A ``checkpoint_id`` that ends in
                a number stands for it.
            allow_pickle: whether values that were pickled are loaded. Loading a pickle runs
                whatever its writer put there.
            threads: chunks of 8 MiB that this rank reads at the same time.
        """
        if threads < 1:
            raise UsageError(f"threads={threads}: expected at least 1")
        self.checkpoint_id: str | os.PathLike[str] | None = None
        self._url = url
        self._step = step
        self._allow_pickle = allow_pickle
        self._threads = threads
        self._open: Opened | None = None

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """See ``StorageReader``: whether a step can be told from it."""
        try:
            identify(None, None, checkpoint_id)
        except UsageError:
            return False
        return True

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """See ``StorageReader``."""
        self.checkpoint_id = checkpoint_id
        self._open = None

    def read_metadata(self) -> Metadata:
        """Choose the checkpoint, and read its metadata.

        A checkpoint that cannot be loaded is told of when the metadata is first looked at:
        DCP takes an exception here for a sign of another format, and hides its message.
        """
        self._open = None
        try:
            opened = Opened.of(identify(self._url, self._step, self.checkpoint_id))
            metadata = opened.metadata()
        except (TrainkitError, OSError) as reason:
            return _Refused(reason)
        self._open = opened
        return metadata

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """See ``StorageReader``.

        Raises:
            CheckpointDamagedError: files are missing or cut off.
        """
        if isinstance(metadata, _Refused):
            metadata.refuse()
        opened = self._opened()
        opened.use(metadata)
        if is_coordinator:  # one rank asks, since this is a request for each file
            catalog.check_sizes(opened.storage, opened.folder, opened.manifest)

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """See ``StorageReader``.

        Raises:
            EnvironmentFaultError: pickles would have to be loaded, and that is not allowed.
        """
        opened = self._opened()
        pickled = [item.storage_index.fqn for item in plan.items if opened.piece(item).pickled]
        if pickled and not self._allow_pickle:
            raise EnvironmentFaultError(
                f"{opened.named} holds pickles, which may run any code when they are loaded: "
                f"{', '.join(pickled[:3])}{' …' if len(pickled) > 3 else ''}. If you trust who "
                f"wrote it: TrainkitReader(…, allow_pickle=True)."
            )
        return dataclasses.replace(plan, storage_data=opened.folder.name)

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """See ``StorageReader``.

        Raises:
            EnvironmentFaultError: ranks would load different checkpoints.
        """
        chosen = sorted({str(plan.storage_data) for plan in plans})
        if len(chosen) > 1:
            raise EnvironmentFaultError(
                f"ranks see different newest checkpoints in {self._opened().storage.url}: "
                f"{', '.join(chosen)}. Give the step: TrainkitReader(url, step=…)."
            )
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read and verify all items of the plan.

        Raises:
            CheckpointDamagedError: bytes are not those that were saved; the message names the
                file. Tensors that were read before are changed already.
        """
        opened = self._opened()
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_file.setdefault(opened.piece(item).file, []).append(item)
        with RangeReader(
            opened.storage, opened.folder.name, opened.manifest.files, threads=self._threads
        ) as reader:
            for file, items in sorted(by_file.items()):
                if items[0].type == LoadItemType.BYTE_IO:
                    _load_values(opened, reader, file, items, planner)
                else:
                    _load_tensors(opened, reader, file, items, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _opened(self) -> Opened:
        if self._open is None:
            raise UsageError("read_metadata() comes first; pass the reader to dcp.load")
        return self._open


class _Refused(Metadata):
    """Metadata of a checkpoint that cannot be loaded: says why as soon as it is looked at."""

    def __init__(self, reason: BaseException) -> None:
        self._reason = reason

    def refuse(self) -> None:
        raise self._reason

    def __getattribute__(self, name: str) -> Any:
        if name in ("state_dict_metadata", "planner_data", "storage_data"):
            self.refuse()
        return super().__getattribute__(name)


def _load_values(
    opened: Opened, reader: RangeReader, file: str, items: list[ReadItem], planner: LoadPlanner
) -> None:
    values = opened.values(reader, file)
    for item in items:
        pickled = opened.piece(item).pickled
        planner.load_bytes(item, values.stream(item.storage_index.fqn, pickled=pickled))


def _load_tensors(
    opened: Opened, reader: RangeReader, file: str, items: list[ReadItem], planner: LoadPlanner
) -> None:
    ranges = [(*_bytes_of(opened, item), item) for item in items]
    for run in runs(sorted(ranges, key=lambda entry: entry[:2])):
        start = run[0][0]
        data = reader.read(file, start, max(end for _, end, _ in run))
        for begin, end, item in run:
            _fill(opened, data[begin - start : end - start], item, planner)


def _bytes_of(opened: Opened, item: ReadItem) -> tuple[int, int]:
    piece, sizes = opened.piece(item), opened.chunk_sizes(item)
    itemsize = opened.items[item.storage_index.fqn].properties.dtype.itemsize
    begin, end = box_bytes(sizes, item.storage_offsets, item.lengths, itemsize)
    return piece.begin + begin, piece.begin + end


def _fill(opened: Opened, data: memoryview, item: ReadItem, planner: LoadPlanner) -> None:
    dtype = opened.items[item.storage_index.fqn].properties.dtype
    value = box_of(data, dtype, opened.chunk_sizes(item), item.lengths)
    target = planner.resolve_tensor(item).detach()
    if target.size() != value.size():
        raise UsageError(
            f"{item.dest_index.fqn}: the planner expects {tuple(target.size())} and reads "
            f"{tuple(value.size())}"
        )
    target.copy_(value)
    planner.commit_tensor(item, target)
