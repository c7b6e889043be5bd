"""All items of one rank, written: tensors as safetensors, values as JSON."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from trainkit.checkpoint.format.checksums import FileRecord
from trainkit.checkpoint.format.layout import StepFolder
from trainkit.checkpoint.format.tensors import METADATA, TensorSource
from trainkit.checkpoint.interop.dcp.metadata import Piece
from trainkit.checkpoint.interop.dcp.tensors import as_source
from trainkit.checkpoint.interop.dcp.values import capture_values
from trainkit.checkpoint.interop.files import FileWriter, spread
from trainkit.errors import UsageError

__all__ = ["RankItems", "Stored"]


@dataclass(frozen=True, slots=True)
class Stored:
    """What a rank tells the coordinator of one item."""

    folder: StepFolder
    piece: Piece
    files: Mapping[str, FileRecord]


@dataclass(frozen=True, slots=True)
class RankItems:
    """Writes what DCP's plan gives to one rank."""

    writer: FileWriter
    folder: StepFolder
    rank: int
    planner: SavePlanner
    allow_pickle: bool

    def write(self, plan: SavePlan, threads: int) -> list[WriteResult]:
        """Write all items; what they became, in their order.

        Raises:
            UsageError: something cannot be saved; the message names its place.
            OSError: the storage failed at each attempt.
        """
        tensors = {item.index: item for item in plan.items if item.tensor_data is not None}
        values = [item for item in plan.items if item.tensor_data is None]
        base = f"dcp/rank{self.rank:05d}"
        pieces: dict[MetadataIndex, Piece] = {}
        if values:  # first: what cannot be saved is to be found before much is written
            pieces.update(self._write_values(f"{base}-values", values))
        sizes = {index: _num_bytes(item) for index, item in tensors.items()}
        jobs = [
            functools.partial(
                self._write_tensors, f"{base}-{i}.safetensors", [tensors[n] for n in names]
            )
            for i, names in enumerate(spread(sizes, threads))
        ]
        for written in self.writer.in_threads(jobs, threads):
            pieces.update(written)
        return [
            WriteResult(
                index=item.index,
                size_in_bytes=sizes.get(item.index, 0),
                storage_data=Stored(self.folder, pieces[item.index], self.writer.files),
            )
            for item in plan.items
        ]

    def _write_values(self, path: str, values: list[WriteItem]) -> dict[MetadataIndex, Piece]:
        document, pickled = capture_values(
            path, self.planner, values, allow_pickle=self.allow_pickle
        )
        self.writer.write_document(document)
        return {v.index: Piece(path, pickled=v.index.fqn in pickled) for v in values}

    def _write_tensors(self, path: str, items: list[WriteItem]) -> dict[MetadataIndex, Piece]:
        sources: dict[str, TensorSource] = {}
        keys: dict[MetadataIndex, str] = {}
        for item in items:
            key = keys[item.index] = _key(item, sources)
            data = _tensor_data(item)
            resolve = functools.partial(_resolve, self.planner, item)
            sources[key] = as_source(
                item.index.fqn, data.properties.dtype, data.chunk.sizes, resolve
            )
        places = self.writer.write_tensors(path, sources)
        return {index: Piece(path, key, *places[key]) for index, key in keys.items()}


def _key(item: WriteItem, taken: Mapping[str, Any]) -> str:
    """A name in the file: the tensor's own where it is whole, so that the file reads as a model."""
    data = _tensor_data(item)
    name = item.index.fqn
    if data.chunk.sizes != data.size:
        name = f"{name}@{','.join(map(str, data.chunk.offsets))}"
    while name in taken or name == METADATA:
        name += "#"
    return name


def _resolve(planner: SavePlanner, item: WriteItem) -> torch.Tensor:
    tensor = planner.resolve_data(item)
    if not isinstance(tensor, torch.Tensor):
        raise UsageError(
            f"{item.index.fqn}: the planner gave a {type(tensor).__name__}, not a tensor"
        )
    return tensor


def _tensor_data(item: WriteItem) -> TensorWriteData:
    if item.tensor_data is None:
        raise UsageError(f"{item.index.fqn}: the plan says nothing of the tensor")
    return item.tensor_data


def _num_bytes(item: WriteItem) -> int:
    data = _tensor_data(item)
    return data.chunk.sizes.numel() * data.properties.dtype.itemsize
