"""Uploads in parts to an S3 store that never ended: no listing of objects shows them."""

import datetime
from collections.abc import Iterator
from typing import Any

from trainkit.storage.base import Upload

__all__ = ["abort", "knows_uploads", "unfinished"]


def knows_uploads(fs: Any) -> bool:
    """Whether a file system of fsspec's lets us ask for them: s3fs does."""
    return hasattr(fs, "call_s3") and hasattr(fs, "split_path")


def unfinished(fs: Any, root: str) -> Iterator[Upload]:
    """Uploads to keys below ``root`` that were neither completed nor aborted, in any order.

    One listing, in pages, and one more for the parts of each.
    """
    bucket, prefix, _ = fs.split_path(root)
    prefix = f"{prefix}/" if prefix else ""
    marker: dict[str, str] = {}
    while True:
        page = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **marker)
        for found in page.get("Uploads", ()):
            key = found["Key"]
            if key.startswith(prefix):
                size, written = _parts(fs, bucket, key, found["UploadId"])
                began = _seconds(found.get("Initiated"))
                modified = max((t for t in (began, written) if t is not None), default=None)
                yield Upload(key[len(prefix) :], found["UploadId"], size, modified)
        if not page.get("IsTruncated") or not page.get("NextKeyMarker"):
            return  # SeaweedFS names no key to go on from; the next call finds what is left then
        marker = {"KeyMarker": page["NextKeyMarker"]}
        if page.get("NextUploadIdMarker"):
            marker["UploadIdMarker"] = page["NextUploadIdMarker"]


def abort(fs: Any, root: str, upload: Upload) -> None:
    """Give an upload up, with its parts.

    Raises:
        FileNotFoundError: it has been completed or aborted, and the store says so.
    """
    bucket, prefix, _ = fs.split_path(root)
    key = f"{prefix}/{upload.path}" if prefix else upload.path
    fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload.identifier)


def _parts(fs: Any, bucket: str, key: str, identifier: str) -> tuple[int, float | None]:
    """Bytes of the parts that are there, and when the last of them was written."""
    size, written, marker = 0, None, 0
    while True:
        try:
            page = fs.call_s3(
                "list_parts",
                Bucket=bucket,
                Key=key,
                UploadId=identifier,
                PartNumberMarker=marker,
            )
        except FileNotFoundError:  # it ended this moment
            return size, written
        parts = page.get("Parts", ())
        for part in parts:
            size += int(part["Size"])
            moment = _seconds(part.get("LastModified"))
            written = max((t for t in (written, moment) if t is not None), default=None)
        if not page.get("IsTruncated") or not parts:
            return size, written
        marker = max(int(part["PartNumber"]) for part in parts)


def _seconds(moment: Any) -> float | None:
    return moment.timestamp() if isinstance(moment, datetime.datetime) else None
