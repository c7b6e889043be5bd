"""Tensor files: plain safetensors, written from any framework's memory and read without one.

A file is 8 bytes of header length, a JSON header, and the tensors' bytes without gaps.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, Protocol

from trainkit.errors import CheckpointDamagedError
from trainkit.storage import Bytes

__all__ = [
    "ITEM_BYTES",
    "METADATA",
    "ReadTensor",
    "StoredTensor",
    "TensorPlace",
    "TensorSource",
    "header_length",
    "lay_out",
    "parse",
    "places",
]

METADATA = "__metadata__"
"""The one name that a tensor cannot have."""

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of one element, by the format's names of element types."""

_ALIGNMENT = 64
_MAX_HEADER = 100_000_000


@dataclass(slots=True)  # not frozen: thousands are made in each save, which that makes slower
class TensorSource:
    """A tensor to be written; ``load`` is called when its turn comes, so that only one tensor
    at a time is copied from a device. It returns contiguous little-endian bytes."""

    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], Bytes]
    origin: Any = None
    """The framework's own tensor, for copies of many at a time."""

    @property
    def num_bytes(self) -> int:
        """Bytes that ``load`` returns."""
        return ITEM_BYTES[self.dtype] * prod(self.shape)


class TensorPlace(NamedTuple):
    """Where a tensor lies: bytes ``begin`` to ``end``, counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class ReadTensor(Protocol):
    """A tensor of a file, as whoever restores it sees it."""

    @property
    def dtype(self) -> str:
        """As the format calls it."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        ...

    @property
    def data(self) -> memoryview:
        """Its bytes, in memory that can be written to."""
        ...


class StoredTensor(NamedTuple):
    """A tensor as it was read: ``data`` is a writable view into the file's bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def lay_out(tensors: Mapping[str, TensorSource], *, framework: str) -> tuple[bytes, list[str], int]:
    """Plan a safetensors file.

    Args:
        tensors: by name.
        framework: the format's own mark of origin, ``pt`` or ``np``, that readers ask for.

    Returns:
        The file's first bytes, the names of the tensors whose bytes follow, without gaps, and
        the file's size in bytes.
    """
    # Widest elements first keeps every tensor aligned to its own element size.
    order = sorted(tensors, key=lambda name: (-ITEM_BYTES[tensors[name].dtype], name))
    header: dict[str, object] = {METADATA: {"format": framework}}
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.num_bytes
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, order, 8 + len(text) + offset


def parse(data: memoryview) -> dict[str, StoredTensor]:
    """Find the tensors in the bytes of a safetensors file.

    Raises:
        CheckpointDamagedError: the header makes no sense, or points outside the file.
    """
    length = header_length(data[:8], len(data))
    body = data[8 + length :]
    return {
        name: StoredTensor(place.dtype, place.shape, body[place.begin : place.end])
        for name, place in places(data[8 : 8 + length], len(body)).items()
    }


def header_length(start: Bytes, size: int) -> int:
    """Bytes of the header of a safetensors file, which follow its first 8 bytes.

    Args:
        start: the first 8 bytes.
        size: of the file, in bytes.

    Raises:
        CheckpointDamagedError: there can be no such header.
    """
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(_MAX_HEADER, size - 8):
        raise CheckpointDamagedError(
            f"not a safetensors file: header of {length} bytes in a file of {size}"
        )
    return length


def places(header: Bytes, body: int) -> dict[str, TensorPlace]:
    """The tensors that a header lists; ``body`` is the number of bytes after it.

    Raises:
        CheckpointDamagedError: the header makes no sense, or points outside the file.
    """
    try:
        found = json.loads(bytes(header))
        found.pop(METADATA, None)
        return {name: _place(value, body) for name, value in found.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointDamagedError(f"not a safetensors file: {error}") from None


def _place(value: Mapping[str, Any], body: int) -> TensorPlace:
    # Thousands of small tensors are common, so every operation here counts.
    dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    num_bytes = ITEM_BYTES[dtype]
    for length in shape:
        if type(length) is not int or length < 0:
            raise ValueError("sizes that are no counts")
        num_bytes *= length
    if type(begin) is not int or type(end) is not int:
        raise ValueError("offsets that are no counts")
    if begin < 0 or end > body or end - begin != num_bytes:
        raise ValueError("data offsets do not fit the shape or the file")
    return TensorPlace(dtype, shape, begin, end)
