"""Large files of tensors, which are read straight to where their tensors belong."""

from collections.abc import Iterable, Mapping, Sequence

from trainkit.checkpoint.adapters.base import FileTensor
from trainkit.checkpoint.format.checksums import CHUNK_BYTES, FileRecord
from trainkit.checkpoint.format.chunks import scatter_chunk
from trainkit.checkpoint.format.tensors import header_length, places
from trainkit.checkpoint.load.files import THREADS, in_threads, read_verified
from trainkit.errors import CheckpointDamagedError, InputMissingError
from trainkit.storage import Storage, scatter_from

__all__ = ["UnreadFile"]

_PIECE_BYTES = 1 << 20
"""As many at most lie in one buffer, so that they are still in the cache when they are hashed."""


class UnreadFile:
    """A safetensors file of which only the header was read, verified. See ``base.TensorFile``."""

    def __init__(self, storage: Storage, path: str, record: FileRecord) -> None:
        """Read the header.

        Raises:
            CheckpointDamagedError: it is not what was saved, or the file is not there.
            OSError: it cannot be read.
        """
        self._storage = storage
        self._path = path
        self._record = record
        first = self._first_chunks(1)
        self._body = 8 + header_length(first[:8], record.size)
        if self._body > len(first):
            first = self._first_chunks(-(-self._body // CHUNK_BYTES))
        self._first = first
        found = places(first[8 : self._body], record.size - self._body)
        self._places = dict(sorted(found.items(), key=lambda item: item[1].begin))
        self._whole: memoryview | None = None

    @property
    def tensors(self) -> Mapping[str, FileTensor]:
        """All of the file, by name."""
        return {
            key: FileTensor(place.dtype, place.shape, key, self)
            for key, place in self._places.items()
        }

    @property
    def is_dense(self) -> bool:
        """Whether each byte behind the header belongs to one tensor, as ``fill`` needs it."""
        end = 0
        for place in self._places.values():
            if place.begin != end:
                return False
            end = place.end
        return self._body + end == self._record.size

    def fill(self, into: Mapping[str, memoryview]) -> None:
        """See ``TensorFile.fill``; in several threads."""
        header = memoryview(bytearray(self._body))
        chunks = _chunks([header, *(into[key] for key in self._places)])
        known = -(-len(self._first) // CHUNK_BYTES)
        left = self._first
        for buffer in (buffer for chunk in chunks[:known] for buffer in chunk):
            buffer[:] = left[: len(buffer)]
            left = left[len(buffer) :]
        self._scatter(chunks, range(known, len(chunks)))

    def data(self, key: str) -> memoryview:
        """See ``TensorFile.data``."""
        if self._whole is None:
            self._whole = read_verified(self._storage, self._path, self._record)[self._body :]
        place = self._places[key]
        return self._whole[place.begin : place.end]

    def _first_chunks(self, count: int) -> memoryview:
        data = memoryview(bytearray(min(count * CHUNK_BYTES, self._record.size)))
        self._scatter(_chunks([data]), range(count))
        return data

    def _scatter(self, chunks: Sequence[Sequence[memoryview]], numbers: Sequence[int]) -> None:
        """Fill some chunks, in several threads; all of them are given."""
        where = f"{self._storage.url}/{self._path}"
        try:
            with (
                scatter_from(self._storage, self._path) as scatter,
                in_threads(min(len(numbers), THREADS)) as each,
            ):

                def fill(number: int) -> None:
                    checksum = self._record.chunks[number]
                    scatter_chunk(scatter, where, chunks[number], number * CHUNK_BYTES, checksum)

                for _ in each(fill, numbers):
                    pass
        except InputMissingError as error:
            raise CheckpointDamagedError(f"{where} is gone: {error}") from None


def _chunks(buffers: Iterable[memoryview]) -> list[list[memoryview]]:
    """Cut buffers that lie one behind the other in a file, by the chunks of the file."""
    chunks: list[list[memoryview]] = []
    room = 0
    for buffer in buffers:
        while len(buffer):
            if not room:
                chunks.append([])
                room = CHUNK_BYTES
            size = min(len(buffer), room, _PIECE_BYTES)
            chunks[-1].append(buffer[:size])
            buffer, room = buffer[size:], room - size
    return chunks
