"""Parts of files, of which every byte is verified before it is given out."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

from trainkit.checkpoint.format.checksums import CHUNK_BYTES, FileRecord
from trainkit.checkpoint.format.chunks import fill_chunk
from trainkit.errors import CheckpointDamagedError
from trainkit.storage import Storage

__all__ = ["RUN_BYTES", "RangeReader", "runs"]

RUN_BYTES = 64 << 20
"""As much is read at once, or one range where that is larger."""

_GAP_BYTES = CHUNK_BYTES
"""Ranges further apart than a chunk share nothing."""

T = TypeVar("T")


class RangeReader:
    """Reads ranges of the files of one step folder, in several threads.

    Checksums cover chunks of 8 MiB, so a range is read with the chunks around it. The last
    chunk of a file stays in memory: ranges that follow one another read none twice.
    """

    def __init__(
        self,
        storage: Storage,
        folder: str,
        files: Mapping[str, FileRecord],
        *,
        threads: int,
        keep: int = 1,
    ) -> None:
        """Begin; nothing is read yet.

        Args:
            storage: of the root.
            folder: name of the step folder.
            files: what the manifest says of them.
            threads: how many chunks are read at the same time.
            keep: of how many files, those that were read last, a chunk stays in memory.
        """
        self._storage = storage
        self._folder = folder
        self._files = files
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="trainkit-read")
        self._keep = keep
        self._last: dict[str, tuple[int, bytearray]] = {}
        self._buffer = memoryview(bytearray())

    def __enter__(self) -> "RangeReader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, path: str, begin: int, end: int) -> memoryview:
        """Bytes ``begin`` to ``end`` of a file; they stay as they are until the next call.

        Raises:
            CheckpointDamagedError: they are not what was saved, or not there; the message names
                the file and the place.
        """
        record = self._files.get(path)
        if record is None or not 0 <= begin <= end <= record.size:
            known = "not listed in the manifest" if record is None else f"{record.size} bytes long"
            raise CheckpointDamagedError(
                f"{self._named(path)} is {known}; bytes {begin} to {end} were to be read"
            )
        if begin == end:
            return memoryview(bytearray())
        numbers = range(begin // CHUNK_BYTES, -(-end // CHUNK_BYTES))
        start, stop = (
            numbers[0] * CHUNK_BYTES,
            min(numbers[-1] * CHUNK_BYTES + CHUNK_BYTES, record.size),
        )
        number, chunk = self._last.get(path, (-1, bytearray()))
        if len(numbers) == 1 and number == numbers[0]:  # nothing is moved for many small ranges
            return memoryview(chunk)[begin - start : end - start]
        view = self._room(stop - start)

        def fill(number: int) -> None:
            place = number * CHUNK_BYTES - start
            self._fill(path, number, view[place : place + CHUNK_BYTES], record.chunks[number])

        for _ in self._pool.map(fill, numbers) if len(numbers) > 1 else map(fill, numbers):
            pass
        self._last.pop(path, None)
        if end < stop:
            if len(self._last) >= self._keep:
                del self._last[next(iter(self._last))]  # that of the file read longest ago
            last = view[numbers[-1] * CHUNK_BYTES - start :]
            self._last[path] = (numbers[-1], bytearray(last))
        return view[begin - start : end - start]

    def size(self, path: str) -> int:
        """Bytes of a file, as the manifest lists it.

        Raises:
            CheckpointDamagedError: it does not.
        """
        if path not in self._files:
            raise CheckpointDamagedError(f"{self._named(path)} is not listed in the manifest")
        return self._files[path].size

    def _room(self, size: int) -> memoryview:
        """Memory for a range, the same each time: fresh memory costs more than the reading."""
        if size > len(self._buffer):
            self._buffer = memoryview(bytearray(size))
        return self._buffer[:size]

    def _fill(self, path: str, number: int, chunk: memoryview, checksum: str) -> None:
        last, kept = self._last.get(path, (-1, bytearray()))
        if last == number:
            chunk[:] = kept
            return
        begin = number * CHUNK_BYTES
        fill_chunk(self._storage, f"{self._folder}/{path}", chunk, begin, checksum)

    def _named(self, path: str) -> str:
        return f"{self._storage.url}/{self._folder}/{path}"


def runs(ranges: Iterable[tuple[int, int, T]]) -> Iterator[list[tuple[int, int, T]]]:
    """Join ranges that lie close together, so that small tensors take one request in common.

    Args:
        ranges: first byte, the one after the last, and whatever belongs to it; ascending.
    """
    run: list[tuple[int, int, T]] = []
    for entry in ranges:
        begin, end, _ = entry
        if run and (end - run[0][0] > RUN_BYTES or begin - run[-1][1] > _GAP_BYTES):
            yield run
            run = []
        run.append(entry)
    if run:
        yield run
