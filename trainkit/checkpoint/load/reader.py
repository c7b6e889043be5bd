"""Reading one checkpoint: every byte that is used is verified first.

Files are read into memory and never mapped: a file that is cut off, or a mount that fails, while a
map of it is read ends the process by a signal where a read raises an error.
"""

import contextlib
import functools
import mmap
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from trainkit.checkpoint.adapters.base import Saved
from trainkit.checkpoint.adapters.state import Restoration
from trainkit.checkpoint.adapters.values import from_json_bytes
from trainkit.checkpoint.format.catalog import read_manifest
from trainkit.checkpoint.format.checksums import CHUNK_BYTES, FileRecord
from trainkit.checkpoint.format.chunks import fill_chunk
from trainkit.checkpoint.format.layout import (
    StepFolder,
    has_parts,
    rank_state_path,
    sharded_path,
    tensor_files,
)
from trainkit.checkpoint.format.manifest import Manifest
from trainkit.checkpoint.format.tensors import StoredTensor, parse
from trainkit.checkpoint.load.parts import EntryParts
from trainkit.checkpoint.load.ranges import RangeReader
from trainkit.checkpoint.load.ranks import RankDocuments
from trainkit.errors import CheckpointDamagedError
from trainkit.storage import Storage

__all__ = ["StepReader", "read_verified", "verified_chunks"]

_THREADS = 4
"""That read one file: more than cores, since an object store answers late."""
_LARGE = 32 * 1024 * 1024
"""Bytes from which on memory comes in pages of 2 MiB: where memory is in pieces, the kernel takes
many milliseconds to make the first of them."""


class StepReader:
    """Reads below one step folder."""

    def __init__(self, storage: Storage, folder: StepFolder) -> None:
        """Read the manifest.

        Raises:
            CheckpointDamagedError: the manifest is damaged, or files are missing or cut off.
            EnvironmentFaultError: a format that this version cannot read.
        """
        self._storage = storage
        self._folder = folder
        self.manifest: Manifest = read_manifest(storage, folder)

    def prepare(self, state: Mapping[str, Any], rank: int, world_size: int) -> Restoration:
        """Read and check all that ``state`` needs; nothing in it is changed yet.

        Of sharded tensors that is what this rank has of them, and no more.

        Raises:
            CheckpointDamagedError: bytes are not those that were saved; the message names the
                file.
            EnvironmentFaultError: the state does not fit; the message names the difference.
        """
        restoration = Restoration(state, self.manifest.entries)
        with self.rank_documents() as ranks:
            self._prepare(restoration, state, ranks, rank)
            if rank < self.manifest.world_size:
                own = ranks.own(rank) if self._has_parts else self.document(rank_state_path(rank))
                restoration.prepare_rank(own, same_world=world_size == self.manifest.world_size)
        return restoration

    def prepare_shared(self, state: Mapping[str, Any], rank: int) -> Restoration:
        """The same of entries that are there and not one rank's own, and of nothing else.

        Raises:
            CheckpointDamagedError: bytes are not those that were saved.
            EnvironmentFaultError: the state does not fit.
        """
        restoration = Restoration(state, {name: self.manifest.entries[name] for name in state})
        with self.rank_documents() as ranks:
            self._prepare(restoration, state, ranks, rank)
        return restoration

    @contextlib.contextmanager
    def rank_documents(self, *, keep: int = 4) -> Iterator[RankDocuments]:
        """What ranks have saved of their own, to be read inside the block.

        Args:
            keep: of how many files a chunk of 8 MiB stays in memory, for who reads here and there.
        """
        name, files = self._folder.name, self.manifest.files
        with RangeReader(self._storage, name, files, threads=_THREADS, keep=keep) as ranges:
            yield RankDocuments(ranges, self._file, f"{self._storage.url}/{name}")

    def document(self, path: str) -> Saved:
        """Read and check all files of one document, which is a path without suffix.

        A file that was saved as it is, whose document is its own path, is read only when the
        result is asked for it: several entries may share one.

        Raises:
            CheckpointDamagedError: bytes are not those that were saved, or files are missing.
        """
        if path in self.manifest.files:
            return Saved({}, raw=functools.partial(self._verified, path, self.manifest.files[path]))
        json, pieces = self._file(f"{path}.json"), tensor_files(path, self.manifest.files)
        if json is None and not pieces:
            raise CheckpointDamagedError(f"{self._storage.url}/{self._folder.name} lacks {path}")
        tensors: dict[str, StoredTensor] = {}
        for piece in pieces:
            data = self._file(piece)
            if data is not None:
                tensors.update(parse(data))
        return Saved(tensors, from_json_bytes(json) if json is not None else None)

    def _prepare(
        self, restoration: Restoration, names: Iterable[str], ranks: RankDocuments, rank: int
    ) -> None:
        for name in names:
            documents = self.manifest.entries[name].documents
            if documents:
                saved = {path: self.document(path) for path in documents}
                for path in self._sharded(name):
                    parts = EntryParts(ranks, name, self.manifest.world_size, near=rank)
                    saved[path] = replace(saved[path], parts=parts)
                restoration.prepare(name, saved)

    @property
    def _has_parts(self) -> bool:
        return any(has_parts(entry.documents) for entry in self.manifest.entries.values())

    def _sharded(self, name: str) -> list[str]:
        """Documents of an entry that describe sharded tensors."""
        documents = self.manifest.entries[name].documents
        there = set(documents)
        return [path for path in map(sharded_path, documents) if path in there]

    def _file(self, path: str) -> memoryview | None:
        record = self.manifest.files.get(path)
        return None if record is None else self._verified(path, record)

    def _verified(self, path: str, record: FileRecord) -> memoryview:
        return read_verified(self._storage, f"{self._folder.name}/{path}", record)


def verified_chunks(storage: Storage, path: str, record: FileRecord) -> Iterator[memoryview]:
    """The bytes of a file, one chunk after the other, each good until the next is asked for.

    Raises:
        CheckpointDamagedError: they are not those that were saved.
        OSError: they cannot be read.
    """
    buffer = _memory(min(record.size, CHUNK_BYTES))
    for number, checksum in enumerate(record.chunks):
        begin = number * CHUNK_BYTES
        chunk = buffer[: min(CHUNK_BYTES, record.size - begin)]
        fill_chunk(storage, path, chunk, begin, checksum)
        yield chunk


def read_verified(storage: Storage, path: str, record: FileRecord) -> memoryview:
    """Read a file whose bytes match its checksums, in several threads if it is large.

    Returns:
        Its bytes, in memory that can be written to and that is the caller's alone.

    Raises:
        CheckpointDamagedError: they do not match; the message names the file and the place.
        OSError: they cannot be read.
    """
    buffer = _memory(record.size)

    def fill(number: int) -> None:
        begin = number * CHUNK_BYTES
        chunk = buffer[begin : begin + CHUNK_BYTES]
        fill_chunk(storage, path, chunk, begin, record.chunks[number])

    with _mapper(min(len(record.chunks), _THREADS)) as each:
        for _ in each(fill, range(len(record.chunks))):
            pass
    return buffer


@contextlib.contextmanager
def _mapper(threads: int) -> Iterator[Any]:
    """``map``, in so many threads; after the first error in order nothing more is begun."""
    if threads <= 1:
        yield map
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="trainkit-read")
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def _memory(size: int) -> memoryview:
    """Zeros to read into; memory that was never touched, where that pays.

    A ``bytearray`` is filled with zeros by one thread, and first touched page by page of 4 KiB,
    which took longer than reading the file. Large pages are touched by the threads that read.
    """
    if size < _LARGE:
        return memoryview(bytearray(size))
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without large pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(pages)
