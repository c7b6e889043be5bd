"""The state in any checkpoint of trainkit, its tensors unread until their turn comes."""

import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

from trainkit.checkpoint.adapters.torch.tensors import DTYPES
from trainkit.checkpoint.adapters.values import decode, from_json_bytes
from trainkit.checkpoint.format.layout import has_parts, tensor_files
from trainkit.checkpoint.format.tensors import TensorSource, header_length, places
from trainkit.checkpoint.interop.dcp.foreign import insert, with_lists
from trainkit.checkpoint.interop.dcp.identifiers import identify
from trainkit.checkpoint.interop.dcp.opened import Opened
from trainkit.checkpoint.interop.dcp.tensors import box_of
from trainkit.checkpoint.load.ranges import RangeReader
from trainkit.checkpoint.load.ranks import RankDocuments, Unread
from trainkit.checkpoint.load.reader import StepReader
from trainkit.checkpoint.load.whole import KEPT_CHUNKS, whole_documents
from trainkit.errors import CheckpointDamagedError, UsageError
from trainkit.storage import Bytes

__all__ = ["read_state"]

log = logging.getLogger(__name__)


@contextlib.contextmanager
def read_state(url: str | os.PathLike[str], step: int | None) -> Iterator[dict[str, Any]]:
    """The state as nested dictionaries and lists; its tensors can be read inside the block.

    Args:
        url: root of checkpoints, or the folder of one step.
        step: which one; None for the newest.

    Raises:
        InputMissingError: there is no such checkpoint.
        CheckpointDamagedError: it is damaged.
        UsageError: something in it cannot be exported.
    """
    opened = Opened.any_kind(identify(url, step, None))
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(
            RangeReader(opened.storage, opened.folder.name, opened.manifest.files, threads=2)
        )
        if opened.is_of_dcp:
            yield _of_dcp(opened, reader)
            return
        steps = StepReader(opened.storage, opened.folder)
        ranks = stack.enter_context(steps.rank_documents(keep=KEPT_CHUNKS))
        yield _of_manager(opened, _Documents(opened, reader, ranks))


def _of_dcp(opened: Opened, reader: RangeReader) -> dict[str, Any]:
    metadata = opened.metadata()
    opened.use(metadata)
    tree: dict[Any, Any] = {}
    paths = metadata.planner_data if isinstance(metadata.planner_data, dict) else {}
    values: dict[str, Any] = {}
    for name, item in metadata.state_dict_metadata.items():
        if isinstance(item, BytesStorageMetadata):
            piece = opened.pieces[MetadataIndex(name)]
            if piece.pickled:
                raise UsageError(f"{opened.named}: {name} is a pickle, which is not exported")
            if piece.file not in values:
                values[piece.file] = opened.values(reader, piece.file)
            leaf = values[piece.file].value(name)
        else:
            leaf = _joined(opened, reader, name, item)
        insert(tree, tuple(paths.get(name, (name,))), leaf)
    result: dict[str, Any] = with_lists(tree)
    return result


def _joined(opened: Opened, reader: RangeReader, name: str, item: Any) -> TensorSource:
    """A tensor of all its chunks."""
    dtype = item.properties.dtype
    if dtype not in DTYPES:
        raise UsageError(f"{name} is a tensor of {dtype}, which cannot be exported")

    def load() -> Bytes:
        whole = torch.empty(item.size, dtype=dtype)
        for chunk in item.chunks:
            piece = opened.pieces[MetadataIndex(name, chunk.offsets)]
            box = whole
            for dim, (offset, size) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
                box = box.narrow(dim, offset, size)
            data = reader.read(piece.file, piece.begin, piece.end)
            box.copy_(box_of(data, dtype, chunk.sizes, chunk.sizes))
        if whole.numel() == 0:
            return b""
        return whole.reshape(-1).view(torch.uint8).numpy().data

    return TensorSource(DTYPES[dtype], tuple(item.size), load)


@dataclass(frozen=True, slots=True)
class _Documents:
    """Values and unread tensors of an entry's documents, by path."""

    opened: Opened
    ranges: RangeReader
    ranks: RankDocuments

    def of(self, name: str) -> dict[str, tuple[Any, Mapping[str, Any]]]:
        entry = self.opened.manifest.entries[name]
        if not has_parts(entry.documents):
            return {path: _document(self.opened, self.ranges, path) for path in entry.documents}
        found: dict[str, tuple[Any, Mapping[str, Any]]] = {}
        for document in whole_documents(self.opened.manifest, self.ranks, name):
            tensors = (document.tensors or {}).items()
            unread = {
                key: Unread(source.dtype, source.shape, source.load) for key, source in tensors
            }
            found[document.path] = (document.json if document.has_json else None, unread)
        return found


def _of_manager(opened: Opened, documents: _Documents) -> dict[str, Any]:
    entries = opened.manifest.entries
    state: dict[str, Any] = {}
    modules = [name for name, entry in entries.items() if entry.kind == "module"]
    for name, entry in entries.items():
        if entry.kind == "module":
            state[name] = {}
            for value, tensors in documents.of(name).values():
                state[name].update(tensors if value is None else decode(value, tensors))
        elif entry.kind == "optimizer":
            value = decode(*documents.of(name)[entry.documents[0]])
            state[name] = _by_plain_names(value, modules)
        elif entry.kind == "value":
            state[name] = decode(*documents.of(name)[entry.documents[0]])
        elif entry.documents:
            log.warning(
                "%s: %s is left out: it lies in files of its own framework (%s)",
                opened.named,
                name,
                ", ".join(entry.documents),
            )
    if not state:
        raise UsageError(f"{opened.named} holds nothing that can be exported")
    return state


def _by_plain_names(value: dict[str, Any], modules: list[str]) -> dict[str, Any]:
    """Names of parameters as torch has them, where there is one module that they can be of."""
    if value.pop("keyed_by") != "name" or len(modules) != 1:
        return value
    before = f"{modules[0]}."
    return {
        **value,
        "state": {name.removeprefix(before): item for name, item in value["state"].items()},
        "param_groups": [
            {**group, "params": [name.removeprefix(before) for name in group["params"]]}
            for group in value["param_groups"]
        ],
    }


def _document(opened: Opened, reader: RangeReader, path: str) -> tuple[Any, Mapping[str, Any]]:
    """Values and unread tensors of a document, however many files it lies in."""
    files = opened.manifest.files
    record = files.get(f"{path}.json")
    pieces = tensor_files(path, files)
    if record is None and not pieces:
        raise CheckpointDamagedError(f"{opened.named} lacks {path}")
    value = None
    if record is not None:
        value = from_json_bytes(bytes(reader.read(f"{path}.json", 0, record.size)))
    tensors: dict[str, Unread] = {}
    for piece in pieces:
        size = files[piece].size
        length = header_length(bytes(reader.read(piece, 0, min(8, size))), size)
        start = 8 + length
        header = bytes(reader.read(piece, 8, start))
        for name, place in places(header, size - start).items():
            load = functools.partial(_copied, reader, piece, start + place.begin, start + place.end)
            tensors[name] = Unread(place.dtype, place.shape, load)
    return value, tensors


def _copied(reader: RangeReader, path: str, begin: int, end: int) -> Bytes:
    return bytearray(reader.read(path, begin, end))
