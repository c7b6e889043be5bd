"""Files as they will lie in the storage, before their bytes are anywhere."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from trainkit.checkpoint.adapters.base import Document, RawFile
from trainkit.checkpoint.adapters.values import to_json_bytes
from trainkit.checkpoint.format.tensors import TensorSource, lay_out
from trainkit.storage import Bytes

__all__ = ["FileImage", "Layout", "Layouts"]

_PIECE = 64 << 20
"""Bytes of a framework's own file that are in memory at a time, where it is not all there."""


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """How a file of tensors is laid out. The same object stands for the same layout only, of
    tensors that are copied in the same way: one by one, or together by their framework."""

    key: list[object]
    head: bytes
    names: list[str]
    """Of the tensors whose bytes follow the head, without gaps; none of them is empty."""
    begins: list[int]
    """Where each of them begins in the file."""
    size: int

    @classmethod
    def of(cls, key: list[object], tensors: Mapping[str, TensorSource]) -> "Layout":
        """Lay out a file."""
        head, order, size = lay_out(tensors, framework="pt")
        names = [name for name in order if tensors[name].num_bytes]
        begins = _begins(len(head), (tensors[name] for name in names))
        return cls(key, head, names, begins, size)


@dataclass(frozen=True, slots=True)
class FileImage:
    """A file of a step folder: some bytes, and after them tensors that are still elsewhere."""

    path: str
    size: int
    """Bytes in all."""
    head: bytes
    tensors: list[TensorSource] = field(default_factory=list)
    layout: Layout | None = None
    """Where that is known from a file before."""

    @property
    def begins(self) -> list[int]:
        """Where each tensor begins in the file."""
        return _begins(len(self.head), self.tensors) if self.layout is None else self.layout.begins

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
        self._known: dict[str, Layout] = {}

    def image(self, path: str, tensors: Mapping[str, TensorSource]) -> FileImage:
        """The file that holds ``tensors``."""
        key: list[object] = [
            (name, t.dtype, t.shape, t.origin is None) for name, t in tensors.items()
        ]
        layout = self._known.get(path)
        if layout is None or layout.key != key:
            layout = self._known[path] = Layout.of(key, tensors)
        its = [tensors[name] for name in layout.names]
        return FileImage(path, layout.size, layout.head, its, layout)


def _begins(head: int, tensors: Iterable[TensorSource]) -> list[int]:
    """Where each of ``tensors`` begins behind a head of so many bytes."""
    return list(accumulate((tensor.num_bytes for tensor in tensors), initial=head))[:-1]
