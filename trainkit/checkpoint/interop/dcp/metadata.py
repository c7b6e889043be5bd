"""DCP's metadata as JSON: what there is, how it was cut, and where each piece lies.

DCP itself pickles it, so that reading a foreign checkpoint's metadata may run foreign code.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from trainkit.checkpoint.adapters.values import Encoder, decode, from_json_bytes
from trainkit.checkpoint.format.layout import is_safe_path
from trainkit.errors import CheckpointDamagedError, UsageError

__all__ = ["ENTRY", "METADATA_PATH", "Piece", "Pieces", "decode_metadata", "encode_metadata"]

ENTRY = "dcp"
"""Name and kind of the one entry in the manifest."""

METADATA_PATH = "dcp/metadata.json"


@dataclass(frozen=True, slots=True)
class Piece:
    """Where one chunk of a tensor, or one value, lies.

    For a tensor ``begin`` and ``end`` are bytes of ``file``, which calls it ``key``; for a value
    ``file`` is the document that holds it under its own name, as JSON or as a pickle.
    """

    file: str
    key: str = ""
    begin: int = 0
    end: int = 0
    pickled: bool = False


Pieces = Mapping[MetadataIndex, Piece]


def encode_metadata(metadata: Metadata, pieces: Pieces) -> bytes:
    """JSON for ``metadata``, one line for each name.

    Raises:
        UsageError: the planner keeps data that is no JSON, or a piece is missing.
    """
    planner = Encoder("planner_data")
    head = {
        "torch": torch.__version__,
        "version": getattr(metadata, "version", None),
        "planner_data": planner.encode(metadata.planner_data),
    }
    if planner.tensors:
        raise UsageError(
            f"the planner keeps tensors beside the state: {next(iter(planner.tensors))}"
        )
    lines = [
        f"{json.dumps(name)}:{json.dumps(_encode_item(name, item, pieces), separators=(',', ':'))}"
        for name, item in metadata.state_dict_metadata.items()
    ]
    text = json.dumps(head)[:-1] + ', "items": {\n' + ",\n".join(lines) + "\n}}\n"
    return text.encode()


def decode_metadata(data: bytes | bytearray) -> Metadata:
    """DCP's metadata; its ``storage_data`` holds the pieces.

    Raises:
        CheckpointDamagedError: it is not what ``encode_metadata`` writes.
    """
    document = from_json_bytes(data)
    try:
        pieces: dict[MetadataIndex, Piece] = {}
        items = {
            str(name): _decode_item(name, item, pieces) for name, item in document["items"].items()
        }
        metadata = Metadata(items, decode(document["planner_data"], {}), pieces)
        if document["version"] is not None and hasattr(metadata, "version"):
            metadata.version = document["version"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, CheckpointDamagedError):
            raise
        raise CheckpointDamagedError(f"{METADATA_PATH} makes no sense: {error!r}") from None
    return metadata


def _encode_item(name: str, item: Any, pieces: Pieces) -> dict[str, Any]:
    if isinstance(item, BytesStorageMetadata):
        piece = _found(pieces, MetadataIndex(name))
        return {"kind": "pickle" if piece.pickled else "value", "file": piece.file}
    properties = item.properties
    return {
        "kind": "tensor",
        "dtype": str(properties.dtype).removeprefix("torch."),
        "layout": str(properties.layout).removeprefix("torch."),
        "memory_format": str(properties.memory_format).removeprefix("torch."),
        "requires_grad": properties.requires_grad,
        "pin_memory": properties.pin_memory,
        "size": list(item.size),
        "chunks": [_encode_chunk(name, chunk, pieces) for chunk in item.chunks],
    }


def _encode_chunk(name: str, chunk: ChunkStorageMetadata, pieces: Pieces) -> dict[str, Any]:
    piece = asdict(_found(pieces, MetadataIndex(name, chunk.offsets)))
    del piece["pickled"]
    return {"offsets": list(chunk.offsets), "sizes": list(chunk.sizes), **piece}


def _found(pieces: Pieces, index: MetadataIndex) -> Piece:
    piece = pieces.get(index)
    if piece is None:
        raise UsageError(
            f"no rank has written {index.fqn} at {index.offset}: the planner planned it"
        )
    return piece


def _decode_item(name: str, item: Any, pieces: dict[MetadataIndex, Piece]) -> Any:
    if item["kind"] != "tensor":
        pickled = {"value": False, "pickle": True}[item["kind"]]
        pieces[MetadataIndex(name)] = Piece(_path(item["file"]), pickled=pickled)
        return BytesStorageMetadata()
    properties = TensorProperties(
        dtype=_named(item["dtype"], torch.dtype),
        layout=_named(item["layout"], torch.layout),
        requires_grad=bool(item["requires_grad"]),
        memory_format=_named(item["memory_format"], torch.memory_format),
        pin_memory=bool(item["pin_memory"]),
    )
    size = _counts(item["size"])
    chunks = []
    for chunk in item["chunks"]:
        offsets, sizes = _counts(chunk["offsets"]), _counts(chunk["sizes"])
        begin, end = _counts([chunk["begin"], chunk["end"]])
        if not len(offsets) == len(sizes) == len(size):
            raise ValueError(f"{name}: a chunk of another number of dimensions")
        if end - begin != sizes.numel() * properties.dtype.itemsize:
            raise ValueError(f"{name}: a chunk of {sizes.numel()} elements in {end - begin} bytes")
        chunks.append(ChunkStorageMetadata(offsets, sizes))
        piece = Piece(_path(chunk["file"]), str(chunk["key"]), begin, end)
        pieces[MetadataIndex(name, offsets)] = piece
    return TensorStorageMetadata(properties, size, chunks)


def _named(name: str, kind: type) -> Any:
    value = getattr(torch, name, None)
    if not isinstance(value, kind):
        raise ValueError(f"this torch has no {kind.__name__} {name!r}")
    return value


def _counts(values: Any) -> torch.Size:
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"{values!r} are no counts")
    return torch.Size(values)


def _path(path: str) -> str:
    if not is_safe_path(path):
        raise ValueError(f"{path!r} is no path inside a checkpoint")
    return path
