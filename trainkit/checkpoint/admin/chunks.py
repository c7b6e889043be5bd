"""One chunk of a file against its checksum, in memory that is used again for the next."""

from trainkit.checkpoint.format.checksums import CHUNK_BYTES, FileRecord
from trainkit.checkpoint.format.chunks import read_chunk
from trainkit.errors import InputMissingError
from trainkit.storage import Storage

__all__ = ["chunk_length", "chunk_problem"]


def chunk_length(record: FileRecord, number: int) -> int:
    """Bytes of the chunk ``number`` of a file."""
    return min(CHUNK_BYTES, record.size - number * CHUNK_BYTES)


def chunk_problem(
    storage: Storage, path: str, record: FileRecord, number: int, buffer: memoryview
) -> str:
    """Read a chunk into the start of ``buffer``, and say what is wrong with it, if anything is.

    The text follows the path of the file in a message.
    """
    begin = number * CHUNK_BYTES
    part = buffer[: chunk_length(record, number)]
    try:
        count, whole = read_chunk(storage, path, part, begin, record.chunks[number])
    except InputMissingError:
        return " is missing"
    if count != len(part):
        return f" ends at byte {begin + count}; the manifest lists {record.size} bytes"
    if not whole:
        return f": bytes {begin} to {begin + len(part)} do not match their checksum"
    return ""
