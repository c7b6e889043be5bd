"""One chunk of a file, read and held against its checksum."""

import logging

from trainkit.checkpoint.format.checksums import digest
from trainkit.errors import CheckpointDamagedError, InputMissingError
from trainkit.storage import Storage

__all__ = ["fill_chunk", "read_chunk"]

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
        log.warning(
            "%s/%s: bytes %d to %d were garbled on the way, and were whole when read again",
            storage.url,
            path,
            begin,
            begin + len(chunk),
        )
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
        raise CheckpointDamagedError(
            f"{storage.url}/{path}: bytes {begin} to {begin + len(chunk)} do not match their "
            f"checksum"
        )
