"""Files as they will lie in the storage, before their bytes are anywhere."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from trainkit.checkpoint.adapters.base import Document, RawFile
from trainkit.checkpoint.adapters.values import to_json_bytes
from trainkit.checkpoint.format.tensors import TensorSource, lay_out
from trainkit.storage import Bytes

__all__ = ["FileImage", "Layouts"]

_PIECE = 64 << 20
"""Bytes of a framework's own file that are in memory at a time, where it is not all there."""


@dataclass(frozen=True, slots=True)
class FileImage:
    """A file of a step folder: some bytes, and after them tensors that are still elsewhere."""

    path: str
    size: int
    """Bytes in all."""
    head: bytes
    tensors: list[TensorSource] = field(default_factory=list)

    @classmethod
    def of_bytes(cls, path: str, data: bytes) -> "FileImage":
        """A file without tensors."""
        return cls(path, len(data), data)

    @classmethod
    def of_json(cls, document: Document) -> "FileImage":
        """The values of a document."""
        return cls.of_bytes(f"{document.path}.json", to_json_bytes(document.json))

    @classmethod
    def of_raw(cls, path: str, raw: RawFile) -> "FileImage":
        """A file as a framework wrote it: its bytes pass through as tensors of bytes do."""
        begins = range(0, raw.size, _PIECE)
        pieces = [(begin, min(begin + _PIECE, raw.size)) for begin in begins]
        tensors = [
            TensorSource("U8", (end - begin,), functools.partial(raw.read, begin, end))
            for begin, end in pieces
        ]
        return cls(path, raw.size, b"", tensors)

    def parts(self) -> Iterator[Bytes]:
        """The bytes, one tensor after the other.

        Raises:
            ValueError: a tensor's bytes are not as many as its shape says.
        """
        yield self.head
        for tensor in self.tensors:
            data = tensor.load()
            if len(data) != tensor.num_bytes:
                raise ValueError(f"{self.path}: {len(data)} bytes, not {tensor.num_bytes}")
            yield data


class Layouts:
    """Plans files of tensors, and remembers the plans: from save to save they are the same."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[list[object], bytes, list[str], int]] = {}

    def image(self, path: str, tensors: Mapping[str, TensorSource]) -> FileImage:
        """The file that holds ``tensors``."""
        key: list[object] = [(name, t.dtype, t.shape) for name, t in tensors.items()]
        known = self._known.get(path)
        if known is None or known[0] != key:
            known = self._known[path] = (key, *lay_out(tensors, framework="pt"))
        _, head, order, size = known
        return FileImage(path, size, head, [tensors[name] for name in order])
