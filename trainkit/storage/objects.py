"""Storage in an object store, or in any other file system that fsspec knows."""

import contextlib
import datetime
import errno
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from trainkit.errors import (
    DependencyError,
    EnvironmentFaultError,
    TrainkitError,
    UsageError,
)
from trainkit.redaction import without_secrets
from trainkit.storage import uploads
from trainkit.storage.base import Bytes, Likeness, ObjectInfo, Storage, Upload, parts_of
from trainkit.storage.copies import can_copy, send_changed
from trainkit.storage.credentials import refuse_credentials
from trainkit.storage.failures import telling_of, was_never_sent, without_tracebacks

__all__ = ["ObjectStorage", "write_together"]

log = logging.getLogger(__name__)

_EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
    "adl": "azure",
}
"""Scheme → the extra of trainkit that brings its file system."""

_GARBLED = {"FlexibleChecksumError"}
"""What a store's library raises where a checksum that came with an answer does not fit it."""

_SMALL = 8 << 20
_AT_ONCE = 8
"""Objects of at most ``_SMALL`` bytes that are sent at the same time."""

_MODIFIED = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")
"""Where the file systems of S3, Azure, Google and memory say when an object was written."""


class ObjectStorage:
    """Objects below one prefix of a store.

    Every object is sent as a whole, by a conditional request (``If-None-Match: *`` on S3 and
    Azure, ``ifGenerationMatch=0`` on Google), so that none is ever seen in part or written over.
    One object at a time is held in memory. Credentials and endpoints are found as the store's own
    tools find them, such as ``AWS_*``.
    """

    def __init__(self, url: str) -> None:
        """Use the prefix ``url``; nothing is asked of the store yet.

        Raises:
            UsageError: the URL has no bucket, an unknown scheme, or credentials in it.
            DependencyError: the file system of this scheme is not installed.
            EnvironmentFaultError: it has no conditional writes.
            NoPermissionError: it wants credentials before anything is asked of it.
        """
        _check_url(url)
        self.url = url.rstrip("/")
        self._fs, self._root = _open(self.url)
        self._copies_failed = False
        self._if_absent = _if_absent(self._fs, urlsplit(url).scheme)
        # Of a scheme that this process registered by itself another process knows nothing.
        self.reopenable = urlsplit(url).scheme in _EXTRAS

    def create(self, path: str, data: Bytes) -> None:
        """See ``Storage.create``."""
        key = self._key(path)
        with self._telling(key):
            try:
                self._fs.pipe_file(key, bytes(data), **self._if_absent)
            except (FileNotFoundError, PermissionError):
                raise
            except Exception as error:
                # Each store has an error of its own for an object that exists. And a request may
                # be done and its answer lost: sent again by the library, it finds itself.
                if was_never_sent(error) or not self._fs.exists(key):
                    raise
                if self._fs.size(key) != len(data) or self._fs.cat_file(key) != data:
                    raise FileExistsError(
                        errno.EEXIST, "object exists", self._named(key)
                    ) from error

    def write(self, path: str, parts: Iterable[Bytes]) -> None:
        """See ``Storage.write``."""
        self.create(path, b"".join(parts))

    def write_all(
        self, files: Mapping[str, Bytes], alike: Mapping[str, Likeness] | None = None
    ) -> None:
        """See ``Storage.write_all``."""
        write_together(self, files, lambda path: self.send_changed(path, files[path], alike))

    def send_changed(self, path: str, data: Bytes, alike: Mapping[str, Likeness] | None) -> bool:
        """Send what is new of an object, if the store can copy the rest; whether it is there."""
        likeness = None if alike is None else alike.get(path)
        if likeness is None or self._copies_failed or not can_copy(self._fs):
            return False
        source = self._key(likeness.path)
        try:
            send_changed(self._fs, self._key(path), data, source, likeness)
        except Exception as error:
            # The older object may be gone, or the store may not copy: all bytes are here. What
            # failed once is not tried for each object of each save.
            self._copies_failed = True
            log.debug("%s is sent as a whole: %s", path, without_secrets(str(error)))
            return False
        return True

    def read(self, path: str) -> bytes:
        """See ``Storage.read``."""
        key = self._key(path)
        with self._telling(key):
            return self._fetched(key, **_one_request(self._fs))

    def read_into(self, path: str, buffer: memoryview, offset: int = 0) -> int:
        """See ``Storage.read_into``."""
        key = self._key(path)
        with self._telling(key):
            try:
                data = self._fetched(key, start=offset, end=offset + len(buffer))
            except FileNotFoundError:
                raise
            except Exception:
                # Stores refuse a range with no byte in it; the error is a different one in each.
                if self._fs.info(key)["size"] > offset:
                    raise
                return 0
            if len(data) < len(buffer):
                wanted = min(len(buffer), self._fs.info(key)["size"] - offset)
                if len(data) < wanted:  # no damage, for which whoever asked would take it
                    data = self._fetched(key, start=offset, end=offset + wanted)
                if len(data) < wanted:
                    text = f"the store sent {len(data)} of {wanted} bytes"
                    raise OSError(errno.EIO, text, self._named(key))
            buffer[: len(data)] = data
        return len(data)

    def names(self, folder: str = "") -> list[str]:
        """See ``Storage.names``."""
        key = self._key(folder)
        with self._telling(key):
            try:
                found = self._fs.ls(key, detail=False)
            except FileNotFoundError:
                return []
        names = {entry.rstrip("/").rpartition("/")[2] for entry in found if entry != key}
        return sorted(name for name in names if name)

    def tree(self, folder: str = "") -> dict[str, ObjectInfo]:
        """See ``Storage.tree``."""
        key = self._key(folder)
        with self._telling(key):
            try:
                found = self._fs.find(key, detail=True)
            except FileNotFoundError:
                return {}
        return {
            name[len(key) + 1 :]: ObjectInfo(int(info["size"] or 0), _modified(info))
            for name, info in found.items()
            if name.startswith(f"{key}/") and name != f"{key}/"
        }

    def size(self, path: str) -> int | None:
        """See ``Storage.size``."""
        key = self._key(path)
        with self._telling(key):
            try:
                info = self._fs.info(key)
            except FileNotFoundError:
                return None
        return int(info["size"]) if info["type"] == "file" else None

    def make_folder(self, path: str = "") -> None:
        """See ``Storage.make_folder``: folders of an object store are only names."""
        self._key(path)

    def delete(self, path: str) -> None:
        """See ``Storage.delete``."""
        key = self._key(path)
        with self._telling(key), contextlib.suppress(FileNotFoundError):
            self._fs.rm(key, recursive=True)

    def uploads(self) -> list[Upload]:
        """See ``Storage.uploads``: S3 and what speaks its language tell."""
        if not uploads.knows_uploads(self._fs):
            return []
        with self._telling(self._root):
            return list(uploads.unfinished(self._fs, self._root))

    def abort_upload(self, upload: Upload) -> bool:
        """See ``Storage.abort_upload``."""
        with self._telling(self._key(upload.path)):
            try:
                uploads.abort(self._fs, self._root, upload)
            except FileNotFoundError:
                return False
        return True

    def _fetched(self, key: str, **asked: Any) -> bytes:
        """Bytes of an object; asked for again where they are not those that the store sent."""
        try:
            return bytes(self._fs.cat_file(key, **asked))
        except Exception as error:
            if type(error).__name__ not in _GARBLED:
                raise
            return bytes(self._fs.cat_file(key, **asked))

    def _key(self, path: str) -> str:
        return "/".join((self._root, *parts_of(path, self.url)))

    def _named(self, key: str) -> str:
        return f"{urlsplit(self.url).scheme}://{key}"

    def _telling(self, key: str) -> contextlib.AbstractContextManager[None]:
        return telling_of(self._named(key))


def write_together(
    storage: Storage, files: Mapping[str, Bytes], changed: Callable[[str], bool]
) -> None:
    """``write_all`` by ``create``, for storages where folders are only names.

    Args:
        storage: to write to.
        files: path → bytes.
        changed: sends what is new of a large one, if it can, and says whether it did.
    """
    # Large ones take all of the connection as it is, and each is held in memory once more.
    small = [path for path, data in files.items() if len(data) <= _SMALL]
    sent: list[str] = []

    def send(path: str) -> None:
        storage.create(path, files[path])
        sent.append(path)

    try:
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="trainkit-put") as pool:
            list(pool.map(send, small))
        for path in files:
            if len(files[path]) <= _SMALL:
                continue
            if changed(path):
                sent.append(path)
            else:
                send(path)
    except BaseException:
        for path in sent:
            with contextlib.suppress(OSError, TrainkitError):
                storage.delete(path)
        raise


def _check_url(url: str) -> None:
    refuse_credentials(url)
    if "::" in url:
        raise UsageError(
            f"{url}: a chain of file systems, whose copies other ranks do not see; expected one, "
            f"such as s3://bucket/folder"
        )
    parts = urlsplit(url)
    if not (parts.netloc or parts.scheme == "memory"):
        raise UsageError(f"{url}: no bucket; expected {parts.scheme}://bucket/folder")


def _open(url: str) -> tuple[Any, str]:
    import fsspec

    scheme = urlsplit(url).scheme
    try:
        fsspec.get_filesystem_class(scheme)
        with telling_of(url):
            return _opened(url)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        what = f'"trainkit[{extra}]"' if extra else f"what fsspec needs for it ({error})"
        raise DependencyError(
            f"{scheme}:// needs a library that is not here: pip install {what}"
        ) from None
    except ValueError:
        raise UsageError(
            f"{scheme}:// is no scheme that fsspec knows. Expected s3://, gs://, az://, file:// "
            f"or a path."
        ) from None


def _opened(url: str) -> tuple[Any, str]:
    import fsspec

    # Once, since a filter that is there is not added again.
    logging.getLogger("gcsfs").addFilter(without_tracebacks)
    try:
        # Listings have to be true: another rank writes what this one is waiting for.
        fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ValueError as error:
        # adlfs wants to know an account, and reads its key, before anything is asked of it.
        raise PermissionError(
            f"{error}: give credentials as the store's own tools find them"
        ) from error
    return fs, root.rstrip("/")


def _if_absent(fs: Any, scheme: str) -> dict[str, Any]:
    """Arguments that make a write fail where the object exists: each file system has its own.

    Raises:
        EnvironmentFaultError: it has none.
    """
    known = inspect.signature(getattr(fs, "_pipe_file", fs.pipe_file)).parameters
    if "mode" in known:
        return {"mode": "create"}
    if "overwrite" in known:  # adlfs
        return {"overwrite": False}
    raise EnvironmentFaultError(
        f"{scheme}:// cannot hold checkpoints: {type(fs).__module__} knows no write that fails "
        f"where an object exists, so two runs could not be told apart. A newer version may."
    )


def _one_request(fs: Any) -> dict[str, Any]:
    """Arguments to read a whole object at once: s3fs would ask for its size first."""
    known = inspect.signature(getattr(fs, "_cat_file", fs.cat_file)).parameters
    return {"max_concurrency": 1} if "max_concurrency" in known and "s3" in fs.protocol else {}


def _modified(info: Mapping[str, Any]) -> float | None:
    """When an object was written; each store has a name of its own for it."""
    found = next((info[name] for name in _MODIFIED if info.get(name) is not None), None)
    if isinstance(found, str):
        found = datetime.datetime.fromisoformat(found)
    if isinstance(found, datetime.datetime):
        return found.timestamp()
    return None if found is None else float(found)
