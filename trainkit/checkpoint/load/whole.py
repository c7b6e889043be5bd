"""An entry of sharded tensors as a run without shards would have saved it, unread."""

import json
from collections.abc import Mapping
from math import prod
from typing import Any

from trainkit.checkpoint.adapters.base import Document, Wanted
from trainkit.checkpoint.adapters.values import decode
from trainkit.checkpoint.format.layout import sharded_path, tensor_files
from trainkit.checkpoint.format.manifest import Manifest
from trainkit.checkpoint.format.tensors import ITEM_BYTES
from trainkit.checkpoint.load.parts import EntryParts
from trainkit.checkpoint.load.ranks import RankDocuments, Unread
from trainkit.errors import CheckpointDamagedError
from trainkit.storage import Bytes

__all__ = ["KEPT_CHUNKS", "whole_documents"]

KEPT_CHUNKS = 64
"""Of how many ranks a chunk of 8 MiB stays in memory where tensors are put together one by one:
with more ranks chunks are read several times."""


def whole_documents(manifest: Manifest, ranks: RankDocuments, name: str) -> list[Document]:
    """Documents of an entry, in which each sharded tensor is one again.

    A tensor is read, and put together from what ranks have saved, when it is loaded.

    Args:
        manifest: of the checkpoint.
        ranks: of the same one; open for as long as tensors are loaded.
        name: of the entry, which has no files in a framework's own format.

    Raises:
        CheckpointDamagedError: what describes the tensors is not what was saved.
    """
    entry = manifest.entries[name]
    descriptions = {sharded_path(path) for path in entry.documents}
    found = []
    for path in entry.documents:
        if path in descriptions:
            continue
        values = ranks.values(path)
        files = tensor_files(path, manifest.files)
        tensors: Mapping[str, Any] = ranks.tensors(files)
        if sharded_path(path) in entry.documents:
            parts = EntryParts(ranks, name, manifest.world_size)
            sharded = _sharded(parts, ranks.values(sharded_path(path)))
            if values is not None:
                value = decode(values, tensors)
                for label, source in sharded.items():
                    _put(name, value, label, source)
                found.append(Document.of(path, name, value))
                continue
            tensors = {**tensors, **sharded}
        if values is None:
            found.append(Document(path, tensors))
        else:
            found.append(Document(path, tensors if files else None, values))
    return found


def _sharded(parts: EntryParts, described: Any) -> dict[str, Unread]:
    try:
        return {key: _together(parts, key, value) for key, value in described.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointDamagedError(
            f"{parts.entry}: sharded tensors that nobody saved like this: {error!r}"
        ) from None


def _together(parts: EntryParts, key: str, described: Mapping[str, Any]) -> Unread:
    dtype, shape = described["dtype"], tuple(described["shape"])
    size = ITEM_BYTES[dtype] * prod(shape)

    def load() -> Bytes:
        data = bytearray(size)
        if size:
            box = ((0,) * len(shape), shape)
            parts.fill([Wanted(key, dtype, shape, box, memoryview(data))])
        return data

    return Unread(dtype, shape, load)


def _put(name: str, value: Any, label: str, tensor: Unread) -> None:
    """Put a tensor of an optimizer where ``label``, a parameter and a key as JSON, says."""
    try:
        parameter, key = json.loads(label)
        value["state"][parameter][key] = tensor
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointDamagedError(
            f"{name}: {label} is sharded, and is no place in its state: {error!r}"
        ) from None
