"""An entry of sharded tensors as a run without shards would have saved it, unread."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from trainkit.checkpoint.adapters.base import Document, Wanted
from trainkit.checkpoint.adapters.values import decode
from trainkit.checkpoint.format.layout import sharded_path
from trainkit.checkpoint.format.manifest import Entry
from trainkit.checkpoint.format.tensors import ITEM_BYTES, StoredTensor, TensorSource
from trainkit.checkpoint.load.parts import EntryParts, RankDocuments
from trainkit.checkpoint.load.reader import StepReader
from trainkit.errors import CheckpointDamagedError
from trainkit.storage import Bytes

__all__ = ["KEPT_CHUNKS", "Unread", "whole_documents", "whole_tensors"]


KEPT_CHUNKS = 64
"""Of how many ranks a chunk of 8 MiB stays in memory where tensors are put together one by one:
with more ranks chunks are read several times."""


@dataclass(slots=True)
class Unread(TensorSource):
    """A tensor of a checkpoint; numpy's arrays are decoded at once and ask for ``data``."""

    @property
    def data(self) -> memoryview:
        """Its bytes."""
        return memoryview(self.load())


def whole_documents(reader: StepReader, ranks: RankDocuments, name: str) -> list[Document]:
    """Documents of an entry, in which each sharded tensor is one again.

    A tensor is put together from what ranks have saved when it is loaded, so that one at a time
    is in memory; those that were not sharded are in memory already, mostly few and small.

    Args:
        reader: of the checkpoint.
        ranks: of the same one; open for as long as tensors are loaded.
        name: of the entry.

    Raises:
        CheckpointDamagedError: what describes the tensors is not what was saved.
    """
    entry = reader.manifest.entries[name]
    documents = []
    for path in entry.documents:
        if sharded_path(path) in entry.documents:
            documents.append(_whole(reader, ranks, name, entry, path))
        elif path not in map(sharded_path, entry.documents):
            saved = reader.document(path)
            tensors = {key: _in_memory(stored) for key, stored in saved.tensors.items()}
            documents.append(
                Document(path, tensors)
                if saved.json is None
                else Document(path, tensors or None, saved.json)
            )
    return documents


def whole_tensors(
    reader: StepReader, ranks: RankDocuments, name: str, path: str
) -> dict[str, TensorSource]:
    """The sharded tensors of one document, by their names in what describes them.

    Raises:
        CheckpointDamagedError: what describes them is not what was saved.
    """
    described = reader.document(sharded_path(path)).json
    parts = EntryParts(ranks, name, reader.manifest.world_size)
    try:
        return {key: _together(parts, key, value) for key, value in described.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointDamagedError(
            f"{name}: sharded tensors that nobody saved like this: {error!r}"
        ) from None


def _whole(
    reader: StepReader, ranks: RankDocuments, name: str, entry: Entry, path: str
) -> Document:
    sharded, saved = whole_tensors(reader, ranks, name, path), reader.document(path)
    tensors: dict[str, Any] = {key: _in_memory(stored) for key, stored in saved.tensors.items()}
    if entry.kind != "optimizer":
        return Document(path, tensors | sharded)
    value = decode(saved.json, tensors)
    try:
        for label, source in sharded.items():
            parameter, key = json.loads(label)
            value["state"][parameter][key] = source
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointDamagedError(
            f"{name}: {label} is sharded, and is no place in its state: {error!r}"
        ) from None
    return Document.of(path, name, value)


def _together(parts: EntryParts, key: str, described: Mapping[str, Any]) -> TensorSource:
    dtype, shape = described["dtype"], tuple(described["shape"])
    size = ITEM_BYTES[dtype] * prod(shape)

    def load() -> Bytes:
        data = memoryview(bytearray(size))
        if len(data):
            parts.fill([Wanted(key, dtype, shape, ((0,) * len(shape), shape), data)])
        return data

    return Unread(dtype, shape, load)


def _in_memory(stored: StoredTensor) -> TensorSource:
    return Unread(stored.dtype, stored.shape, lambda: stored.data)
