"""Large objects of S3 that are put together from new bytes and from parts of older objects."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from trainkit.storage.base import Bytes, Likeness

__all__ = ["can_copy", "send_changed"]

log = logging.getLogger(__name__)

_PART = 64 << 20
"""Bytes of new data in one request; S3 takes 5 MiB to 5 GiB."""
_COPIED = 256 << 20
"""Bytes that one request has the store copy: it answers when it is done, and clients wait for
seconds."""
_MOST = 10_000
"""Parts that an object may have."""
_LEAST = 5 << 20
"""Bytes of the smallest part that is not the last one."""
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class _Piece:
    begin: int
    end: int
    copied: bool


def can_copy(fs: Any) -> bool:
    """Whether the store behind a file system of fsspec's can be asked to copy parts of objects."""
    return "s3" in _protocols(fs) and hasattr(fs, "call_s3")


def send_changed(fs: Any, key: str, data: Bytes, source: str, likeness: Likeness) -> None:
    """Make an object of which the store has most bytes already; it appears whole or not at all.

    Args:
        fs: s3fs's file system.
        key: bucket and name of the object, which must not be there.
        data: all of its bytes.
        source: bucket and name of the older object.
        likeness: where ``data`` is the same as that.

    Raises:
        Exception: of any kind, as the store's library has them; nothing is there then, unless
            only the store's last answer was lost.
    """
    view = memoryview(data)
    pieces = list(_pieces(len(view), likeness))
    if len(pieces) > _MOST:
        raise ValueError(f"{len(pieces)} parts")
    bucket, name = key.split("/", 1)
    old_bucket, old_name = source.split("/", 1)
    upload = {"Bucket": bucket, "Key": name}
    upload["UploadId"] = fs.call_s3("create_multipart_upload", **upload)["UploadId"]

    def send(numbered: tuple[int, _Piece]) -> dict[str, Any]:
        number, piece = numbered
        if piece.copied:
            answer = fs.call_s3(
                "upload_part_copy",
                **upload,
                PartNumber=number,
                CopySource={"Bucket": old_bucket, "Key": old_name},
                CopySourceRange=f"bytes={piece.begin}-{piece.end - 1}",
            )["CopyPartResult"]
        else:
            body = bytes(view[piece.begin : piece.end])
            answer = fs.call_s3("upload_part", **upload, PartNumber=number, Body=body)
        return {"PartNumber": number, "ETag": answer["ETag"]}

    try:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="trainkit-put") as pool:
            parts = list(pool.map(send, enumerate(pieces, 1)))
        fs.call_s3(
            "complete_multipart_upload",
            **upload,
            MultipartUpload={"Parts": parts},
            IfNoneMatch="*",
        )
    except BaseException:
        _abort(fs, upload)
        raise
    copied = sum(piece.end - piece.begin for piece in pieces if piece.copied)
    log.debug("%s: %d bytes sent, %d copied by the store", key, len(view) - copied, copied)


def _pieces(size: int, likeness: Likeness) -> Iterator[_Piece]:
    """The parts of the new object in order; each but the last is large enough for the store."""
    at = 0
    for begin, end in likeness.ranges:
        end = min(end, size)
        if begin > at:  # what is sent before must not be too small either
            begin = max(begin, at + _LEAST)
        if end - begin < _LEAST:
            continue
        yield from _cut(at, begin, _PART, copied=False)
        yield from _cut(begin, end, _COPIED, copied=True)
        at = end
    yield from _cut(at, size, _PART, copied=False)


def _cut(begin: int, end: int, most: int, *, copied: bool) -> Iterator[_Piece]:
    """Pieces of at most ``most`` bytes, of about the same size, so that none is too small."""
    count = -(-(end - begin) // most)
    for number in range(count):
        first = begin + (end - begin) * number // count
        last = begin + (end - begin) * (number + 1) // count
        yield _Piece(first, last, copied)


def _abort(fs: Any, upload: dict[str, Any]) -> None:
    try:
        fs.call_s3("abort_multipart_upload", **upload)
    except Exception as error:  # what is left of it is invisible, and a lifecycle rule removes it
        log.debug("an upload could not be aborted: %s", type(error).__name__)


def _protocols(fs: Any) -> tuple[str, ...]:
    protocol = getattr(fs, "protocol", ())
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
