"""One chunk of a file, read and held against its checksum."""

import logging
from collections.abc import Sequence

import xxhash

from trainkit.checkpoint.format.checksums import digest
from trainkit.errors import CheckpointDamagedError, InputMissingError
from trainkit.storage import Scatter, Storage

__all__ = ["fill_chunk", "read_chunk", "scatter_chunk"]

log = logging.getLogger(__name__)


def read_chunk(
    storage: Storage, path: str, chunk: memoryview, begin: int, checksum: str
) -> tuple[int, bool]:
    """Fill ``chunk`` from byte ``begin`` on, and compare.

    One that does not match is read once more: networks garble, now and then, what a store keeps
    well, and whoever took that for damage would pass over a good checkpoint for good.

    Returns:
        How many bytes there were, and whether they are those that were saved.

    Raises:
        InputMissingError: there is no such file.
        OSError: it cannot be read.
    """
    count = storage.read_into(path, chunk, begin)
    # At once, while the bytes are in the processor's cache.
    if count == len(chunk) and digest(chunk) == checksum:
        return count, True
    count = storage.read_into(path, chunk, begin)
    whole = count == len(chunk) and digest(chunk) == checksum
    if whole:
        _warn_of_garbled(f"{storage.url}/{path}", begin, begin + len(chunk))
    return count, whole


def fill_chunk(storage: Storage, path: str, chunk: memoryview, begin: int, checksum: str) -> None:
    """Fill ``chunk`` with bytes that are those that were saved.

    Raises:
        CheckpointDamagedError: they are not, or the file is gone; the message names the place.
        OSError: it cannot be read.
    """
    try:
        _, whole = read_chunk(storage, path, chunk, begin, checksum)
    except InputMissingError as error:
        raise CheckpointDamagedError(f"{storage.url}/{path} is gone: {error}") from None
    if not whole:
        raise _damaged(f"{storage.url}/{path}", begin, begin + len(chunk))


def scatter_chunk(
    scatter: Scatter, where: str, buffers: Sequence[memoryview], begin: int, checksum: str
) -> None:
    """Fill ``buffers``, which are a chunk together, with bytes that are those that were saved.

    Args:
        scatter: reads the file.
        where: the file, for messages.
        buffers: in the order of the file, from byte ``begin`` on.
        begin: first byte of the chunk.
        checksum: of all of it.

    Raises:
        CheckpointDamagedError: they are not; the buffers hold anything then.
        OSError: it cannot be read, or is gone.
    """
    hasher, full = xxhash.xxh3_128(), 0
    for now_full in scatter(buffers, begin):
        for buffer in buffers[full:now_full]:
            hasher.update(buffer)
        full = now_full
    if full == len(buffers) and hasher.hexdigest() == checksum:
        return
    # Once more, as ``read_chunk``; to where nobody else writes, as another thread may to tensors.
    size = sum(map(len, buffers))
    chunk = memoryview(bytearray(size))
    if sum(scatter([chunk], begin)) != 1 or digest(chunk) != checksum:
        raise _damaged(where, begin, begin + size)
    _warn_of_garbled(where, begin, begin + size)
    for buffer in buffers:
        buffer[:] = chunk[: len(buffer)]
        chunk = chunk[len(buffer) :]


def _warn_of_garbled(where: str, begin: int, end: int) -> None:
    text = "%s: bytes %d to %d were garbled on the way, and were whole when read again"
    log.warning(text, where, begin, end)


def _damaged(where: str, begin: int, end: int) -> CheckpointDamagedError:
    return CheckpointDamagedError(f"{where}: bytes {begin} to {end} do not match their checksum")
