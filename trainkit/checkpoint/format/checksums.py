"""Checksums of files in chunks, made while the bytes pass by."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import xxhash

from trainkit.storage import Bytes, Ready

__all__ = [
    "CHUNK_BYTES",
    "ChunkHasher",
    "FileRecord",
    "Hashing",
    "digest",
    "record_of",
    "unchanged",
]

CHUNK_BYTES = 8 * 1024 * 1024
"""One checksum covers this many bytes; the last chunk of a file may be shorter."""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size of a file in bytes, and the xxh3-128 of each of its chunks in hexadecimal."""

    size: int
    chunks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The record as it stands in a manifest."""
        return {"size": self.size, "xxh3_128": list(self.chunks)}

    @classmethod
    def from_json(cls, value: Any) -> "FileRecord":
        """Read a record back.

        Raises:
            ValueError: size and number of chunks do not fit, or are missing.
        """
        size, chunks = value["size"], value["xxh3_128"]
        if type(size) is not int or size < 0 or not all(isinstance(c, str) for c in chunks):
            raise ValueError("a file record without size or checksums")
        if len(chunks) != -(-size // CHUNK_BYTES):
            raise ValueError(f"{len(chunks)} checksums for {size} bytes")
        return cls(size, tuple(chunks))


def unchanged(new: FileRecord, old: FileRecord) -> tuple[tuple[int, int], ...]:
    """Ranges of bytes that two files have in common at the same places, by their checksums."""
    ranges: list[tuple[int, int]] = []
    for number, (one, other) in enumerate(zip(new.chunks, old.chunks, strict=False)):
        begin = number * CHUNK_BYTES
        end = min(begin + CHUNK_BYTES, new.size)
        if one != other or end != min(begin + CHUNK_BYTES, old.size):
            continue
        if ranges and ranges[-1][1] == begin:
            begin, _ = ranges.pop()
        ranges.append((begin, end))
    return tuple(ranges)


def digest(data: Bytes) -> str:
    """The xxh3-128 of ``data`` in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(data)


def record_of(data: Bytes) -> FileRecord:
    """Size and checksums of a whole file in memory; chunks are hashed side by side."""
    view = memoryview(data)
    chunks = [view[begin : begin + CHUNK_BYTES] for begin in range(0, len(view), CHUNK_BYTES)]
    if len(chunks) <= 2:
        return FileRecord(len(view), tuple(map(digest, chunks)))
    with ThreadPoolExecutor(2, thread_name_prefix="trainkit-hash") as pool:
        return FileRecord(len(view), tuple(pool.map(digest, chunks)))


class Hashing:
    """Checksums of files in memory, each chunk's made just before it is written.

    So it costs no time where a disk is slower than the hash, and the bytes are in the cache.
    """

    def __init__(self, files: Mapping[str, memoryview], ready: Ready) -> None:
        """Begin.

        Args:
            files: path → bytes.
            ready: waits for a range of them.
        """
        self._files = files
        self._ready = ready
        self._chunks: dict[str, list[str | None]] = {
            path: [None] * -(-len(data) // CHUNK_BYTES) for path, data in files.items()
        }

    def ready(self, path: str, begin: int, end: int) -> None:
        """Wait for bytes of a file, and hash the chunks that they are in; for several threads."""
        data, chunks = self._files[path], self._chunks[path]
        for number in range(begin // CHUNK_BYTES, -(-end // CHUNK_BYTES)):
            if chunks[number] is None:
                first = number * CHUNK_BYTES
                chunk = data[first : first + CHUNK_BYTES]
                self._ready(path, first, first + len(chunk))
                chunks[number] = digest(chunk)

    def records(self) -> dict[str, FileRecord]:
        """Sizes and checksums of all files."""
        records = {}
        for path, data in self._files.items():
            self.ready(path, 0, len(data))
            chunks = [chunk for chunk in self._chunks[path] if chunk is not None]
            records[path] = FileRecord(len(data), tuple(chunks))
        return records


@dataclass(slots=True)
class ChunkHasher:
    """Hashes a stream of bytes; ``record`` is right once the stream has ended."""

    _size: int = 0
    _chunks: list[str] = field(default_factory=list)
    _open: Any = field(default_factory=xxhash.xxh3_128)

    def passing(self, parts: Iterable[Bytes]) -> Iterator[Bytes]:
        """Yield ``parts`` unchanged and hash them on the way."""
        for part in parts:
            self.update(part)
            yield part

    def update(self, part: Bytes) -> None:
        """Take the next bytes."""
        view = memoryview(part)
        while len(view):
            room = CHUNK_BYTES - self._size % CHUNK_BYTES
            head, view = view[:room], view[room:]
            self._open.update(head)
            self._size += len(head)
            if self._size % CHUNK_BYTES == 0:
                self._close_chunk()

    @property
    def record(self) -> FileRecord:
        """Size and checksums of all bytes so far."""
        if self._size % CHUNK_BYTES and len(self._chunks) == self._size // CHUNK_BYTES:
            self._close_chunk()
        return FileRecord(self._size, tuple(self._chunks))

    def _close_chunk(self) -> None:
        self._chunks.append(self._open.hexdigest())
        self._open = xxhash.xxh3_128()
