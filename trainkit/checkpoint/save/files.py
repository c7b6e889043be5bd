"""Files as they will lie in the storage, before their bytes are anywhere."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from trainkit.checkpoint.adapters.base import Document
from trainkit.checkpoint.adapters.values import to_json_bytes
from trainkit.checkpoint.format.tensors import TensorSource
from trainkit.storage import Bytes

__all__ = ["FileImage"]


@dataclass(frozen=True, slots=True)
class FileImage:
    """A file of a step folder: some bytes, and after them tensors that are still elsewhere."""

    path: str
    head: bytes
    tensors: list[TensorSource] = field(default_factory=list)

    @classmethod
    def of_json(cls, document: Document) -> "FileImage":
        """The values of a document."""
        return cls(f"{document.path}.json", to_json_bytes(document.json))

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self.head) + sum(tensor.num_bytes for tensor in self.tensors)

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

    def fill(self, buffer: memoryview) -> None:
        """Copy the bytes into a buffer of their size.

        Raises:
            ValueError: a tensor's bytes are not as many as its shape says.
        """
        begin = 0
        for part in self.parts():
            buffer[begin : begin + len(part)] = part
            begin += len(part)
