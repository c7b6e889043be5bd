"""Files that are read whole, every byte of them verified.

Files are read into memory and never mapped: a file that is cut off, or a mount that fails, while a
map of it is read ends the process by a signal where a read raises an error.
"""

import contextlib
import mmap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from trainkit.checkpoint.format.checksums import CHUNK_BYTES, FileRecord
from trainkit.checkpoint.format.chunks import fill_chunk
from trainkit.storage import Storage

__all__ = ["LARGE", "THREADS", "in_threads", "read_verified", "verified_chunks"]

THREADS = 4
"""That read one file: more than cores, since an object store answers late."""
LARGE = 32 * 1024 * 1024
"""Bytes from which on memory comes in pages of 2 MiB: where memory is in pieces, the kernel takes
many milliseconds to make the first of them."""


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

    with in_threads(min(len(record.chunks), THREADS)) as each:
        for _ in each(fill, range(len(record.chunks))):
            pass
    return buffer


@contextlib.contextmanager
def in_threads(threads: int) -> Iterator[Any]:
    """``map``, in so many threads; after the first error in order nothing more is begun."""
    if threads <= 1:
        yield map
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="trainkit-read")
    try:
        yield pool.map
    finally:
        try:
            pool.shutdown(cancel_futures=True)
        except BaseException:  # a second Ctrl-C; but threads still write to what is not theirs
            pool.shutdown()
            raise


def _memory(size: int) -> memoryview:
    """Zeros to read into; memory that was never touched, where that pays.

    A ``bytearray`` is filled with zeros by one thread, and first touched page by page of 4 KiB,
    which took longer than reading the file. Large pages are touched by the threads that read.
    """
    if size < LARGE:
        return memoryview(bytearray(size))
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without large pages
        pages.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(pages)
