"""IDX, the format of the MNIST files: a magic number, sizes, bytes; plain or gzipped."""

import gzip
import struct
import zlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, cast

from trainkit.errors import DataError, InputMissingError, NoPermissionError

__all__ = ["IdxArray", "read_idx"]

_UNSIGNED_BYTE = 0x08
_MAX_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class IdxArray:
    """Unsigned bytes with a shape, the last dimension varying fastest."""

    shape: tuple[int, ...]
    """Sizes of the dimensions."""
    data: bytearray
    """prod(shape) bytes; writable, so that tensors can share it without a copy."""


def read_idx(path: Path, *, dimensions: int) -> IdxArray:
    """Read an IDX file of unsigned bytes.

    Args:
        path: the file; gzip is recognised by its content, whatever the name says.
        dimensions: number of dimensions expected: 3 for images, 1 for labels.

    Raises:
        InputMissingError: there is no such file.
        NoPermissionError: it may not be read.
        DataError: it is no such file, or it is damaged; the message says in what way.
    """
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not zipped:
                return _read(raw, path, dimensions)
            with gzip.open(raw) as stream:
                return _read(cast(IO[bytes], stream), path, dimensions)
    except FileNotFoundError:
        raise InputMissingError(f"expected an IDX file at {path}, found nothing there") from None
    except PermissionError as refusal:
        raise NoPermissionError(f"{path} may not be read: {refusal.strerror}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as damage:
        raise DataError(
            f"{path} is damaged: its gzip stream is broken or cut off ({damage}). "
            f"Copy or download it again ({path.stat().st_size:,} bytes are here)."
        ) from None


def _read(stream: IO[bytes], path: Path, dimensions: int) -> IdxArray:
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or not 1 <= head[3] <= _MAX_DIMENSIONS:
        raise DataError(
            f"expected an IDX file at {path}, found one that begins with {head!r}. "
            f"Is it a web page or another format under this name?"
        )
    if head[2] != _UNSIGNED_BYTE or head[3] != dimensions:
        expected = bytes((0, 0, _UNSIGNED_BYTE, dimensions)).hex()
        raise DataError(
            f"expected magic number 0x{expected} ({dimensions} dimension(s) of unsigned bytes) "
            f"in {path}, found 0x{head.hex()}. Are images and labels swapped?"
        )
    sizes = stream.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise DataError(f"{path} ends within its header. Copy or download it again.")
    shape = struct.unpack(f">{dimensions}I", sizes)
    # One byte more than announced is enough to see that there is too much.
    data = bytearray(stream.read(prod(shape) + 1))
    if len(data) != prod(shape):
        found = "more" if len(data) > prod(shape) else f"{len(data):,}"
        raise DataError(
            f"expected {prod(shape):,} bytes for shape {shape} in {path}, found {found}. "
            f"Copy or download it again."
        )
    return IdxArray(shape, data)
