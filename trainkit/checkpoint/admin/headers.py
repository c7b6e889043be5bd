"""Which tensors a document holds and where, read from the heads of its files alone."""

from collections.abc import Mapping
from dataclasses import dataclass

from trainkit.checkpoint.format.checksums import FileRecord
from trainkit.checkpoint.format.layout import StepFolder, tensor_files
from trainkit.checkpoint.format.manifest import Manifest
from trainkit.checkpoint.format.tensors import header_length, places
from trainkit.errors import CheckpointDamagedError, InputMissingError
from trainkit.storage import Storage

__all__ = ["DocumentFiles", "TensorAt", "document_files", "document_tensors", "file_tensors"]

_FIRST_READ = 16 * 1024
"""Bytes that most headers fit into, so that they take one request."""


@dataclass(frozen=True, slots=True)
class TensorAt:
    """A tensor in a file of a step folder: its bytes from ``begin`` to ``end``."""

    dtype: str
    shape: tuple[int, ...]
    file: str
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Bytes of its values."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class DocumentFiles:
    """Files of one document: its tensors may lie in several, or it is a file as it is."""

    tensors: tuple[str, ...]
    json: str | None
    raw: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.tensors, *filter(None, (self.json, self.raw)))


def document_files(manifest: Manifest, document: str) -> DocumentFiles:
    """Find the files of a document, which is a path without suffix, or that of a file as it is.

    Raises:
        CheckpointDamagedError: there is none.
    """
    if document in manifest.files:
        return DocumentFiles((), None, document)
    tensors, json = tensor_files(document, manifest.files), f"{document}.json"
    if not tensors and json not in manifest.files:
        raise CheckpointDamagedError(f"the manifest lists no file of {document}")
    return DocumentFiles(tuple(tensors), json if json in manifest.files else None)


def document_tensors(
    storage: Storage, folder: StepFolder, manifest: Manifest, document: str
) -> dict[str, TensorAt]:
    """All tensors of a document, by name.

    Raises:
        CheckpointDamagedError: a file is missing, or its head makes no sense.
    """
    found: dict[str, TensorAt] = {}
    for path in document_files(manifest, document).tensors:
        found.update(file_tensors(storage, folder, path, manifest.files[path]))
    return found


def file_tensors(
    storage: Storage, folder: StepFolder, path: str, record: FileRecord
) -> Mapping[str, TensorAt]:
    """The tensors of one file.

    Raises:
        CheckpointDamagedError: it is missing, or its head makes no sense.
    """
    where = f"{folder.name}/{path}"
    try:
        first = _read(storage, where, 0, min(_FIRST_READ, record.size))
        length = header_length(first[:8], record.size)
        header = first[8 : 8 + length]
        header += _read(storage, where, 8 + len(header), length - len(header))
        found = places(header, record.size - 8 - length)
    except InputMissingError:
        raise CheckpointDamagedError(f"{storage.url}/{where} is missing") from None
    except CheckpointDamagedError as reason:
        raise CheckpointDamagedError(f"{storage.url}/{where}: {reason}") from None
    start = 8 + length
    return {
        name: TensorAt(place.dtype, place.shape, path, start + place.begin, start + place.end)
        for name, place in found.items()
    }


def _read(storage: Storage, path: str, offset: int, count: int) -> bytes:
    buffer = bytearray(count)
    if count:
        del buffer[storage.read_into(path, memoryview(buffer), offset) :]
    return bytes(buffer)
