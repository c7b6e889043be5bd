"""S3 by obstore, which is quick; fsspec does, or explains, whatever it cannot.

One compiled library that is imported at once, and takes a fraction of the processor time for each
request. But it reads neither profiles nor other configuration of AWS's
own tools. So it is used where the environment says all there is to know, and a request that it
fails is made again through fsspec: what users see of errors comes from there alone.
"""

import contextlib
import errno
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from trainkit.errors import InputMissingError
from trainkit.storage.aws import client_options, is_plain, is_plain_key
from trainkit.storage.base import Bytes, Likeness, ObjectInfo, Upload, parts_of
from trainkit.storage.objects import ObjectStorage, write_together

__all__ = ["ObstoreStorage", "is_usable"]

T = TypeVar("T")

_ONE_REQUEST = 50 << 20
"""Bytes of the largest object that fsspec, too, sends in one request. obstore has no conditional
upload in parts, and one stream for gigabytes is slow where servers are far."""

_IN_A_ROW = 3
"""Requests that failed here and not in fsspec, after which all go there."""


_threads_lost = False
"""Whether this process was forked from one that had obstore: without its threads a request would
wait for ever."""


def _after_fork() -> None:
    global _threads_lost
    _threads_lost = "obstore" in sys.modules


os.register_at_fork(after_in_child=_after_fork)


def is_usable(url: str, variables: Mapping[str, str]) -> bool:
    """Whether ``ObstoreStorage`` can be opened at ``url``, and does there as fsspec would."""
    if _threads_lost or not is_plain(url, variables):
        return False
    return importlib.util.find_spec("obstore") is not None


class ObstoreStorage:
    """Objects below one prefix of an S3 bucket; ``is_usable`` says where.

    As ``ObjectStorage`` in all that it does. Larger objects than 50 MiB are sent by that.
    """

    def __init__(self, url: str, variables: Mapping[str, str]) -> None:
        """Use the prefix ``url``; nothing is asked of the store yet."""
        from obstore.store import S3Store

        self.url = url.rstrip("/")
        self.reopenable = True
        bucket, _, self._root = self.url.partition("://")[2].partition("/")
        self._store = S3Store(bucket, **client_options(bucket, variables))
        self._slow: ObjectStorage | None = None
        self._rescued = 0

    def create(self, path: str, data: Bytes) -> None:
        """See ``Storage.create``."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        def put() -> None:
            view = memoryview(data).cast("B")
            try:
                obstore.put(self._store, self._key(path), view, mode="create", use_multipart=False)
            except AlreadyExistsError:
                # Or the answer to this request was lost, and it was sent again.
                size = self.size(path)
                if size is None:  # refused for another reason, which fsspec explains
                    raise
                found = self._fetch(path) if size == len(view) else None
                if found != view:
                    raise FileExistsError(
                        errno.EEXIST, "object exists", self._named(path)
                    ) from None

        if len(memoryview(data).cast("B")) > _ONE_REQUEST:
            self._by_fsspec().create(path, data)
        else:
            self._quickly(put, lambda: self._by_fsspec().create(path, data), path)

    def write(self, path: str, parts: Iterable[Bytes]) -> None:
        """See ``Storage.write``."""
        self.create(path, b"".join(parts))

    def write_all(
        self, files: Mapping[str, Bytes], alike: Mapping[str, Likeness] | None = None
    ) -> None:
        """See ``Storage.write_all``."""

        def changed(path: str) -> bool:
            return bool(alike) and self._by_fsspec().send_changed(path, files[path], alike)

        write_together(self, files, changed)

    def read(self, path: str) -> bytes:
        """See ``Storage.read``."""
        return self._quickly(
            lambda: bytes(self._fetch(path)), lambda: self._by_fsspec().read(path), path
        )

    def read_into(self, path: str, buffer: memoryview, offset: int = 0) -> int:
        """See ``Storage.read_into``."""
        import obstore
        from obstore.exceptions import BaseError

        def read() -> int:
            if not len(buffer):
                return 0
            try:
                data = obstore.get_range(
                    self._store, self._key(path), start=offset, length=len(buffer)
                )
            except BaseError:
                # S3 refuses a range with no byte in it.
                size = self.size(path)
                if size is None or size > offset:
                    raise
                return 0
            if len(data) < len(buffer):
                wanted = min(len(buffer), (self.size(path) or 0) - offset)
                if len(data) < wanted:
                    data = obstore.get_range(
                        self._store, self._key(path), start=offset, length=wanted
                    )
                if len(data) < wanted:  # no damage, for which whoever asked would take it
                    text = f"the store sent {len(data)} of {wanted} bytes"
                    raise OSError(errno.EIO, text, self._named(path))
            buffer[: len(data)] = memoryview(data)
            return len(data)

        return self._quickly(read, lambda: self._by_fsspec().read_into(path, buffer, offset), path)

    def names(self, folder: str = "") -> list[str]:
        """See ``Storage.names``."""
        import obstore

        def names() -> list[str]:
            key = self._key(folder)
            try:
                found = obstore.list_with_delimiter(self._store, key or None)
            except FileNotFoundError:  # the bucket
                return []
            paths = [*found["common_prefixes"], *(meta["path"] for meta in found["objects"])]
            below = {path.rstrip("/").rpartition("/")[2] for path in paths if path != key}
            return sorted(name for name in below if name)

        return self._quickly(names, lambda: self._by_fsspec().names(folder), folder)

    def tree(self, folder: str = "") -> dict[str, ObjectInfo]:
        """See ``Storage.tree``."""

        def tree() -> dict[str, ObjectInfo]:
            start = len(self._key(folder))
            found = {
                meta["path"][start:].lstrip("/"): ObjectInfo(
                    meta["size"], meta["last_modified"].timestamp()
                )
                for meta in self._below(folder)
            }
            return dict(sorted(found.items()))

        return self._quickly(tree, lambda: self._by_fsspec().tree(folder), folder)

    def size(self, path: str) -> int | None:
        """See ``Storage.size``."""
        import obstore

        def size() -> int | None:
            try:
                return int(obstore.head(self._store, self._key(path))["size"])
            except FileNotFoundError:
                return None

        return self._quickly(size, lambda: self._by_fsspec().size(path), path)

    def make_folder(self, path: str = "") -> None:
        """See ``Storage.make_folder``: folders of an object store are only names."""
        self._key(path)

    def delete(self, path: str) -> None:
        """See ``Storage.delete``."""
        import obstore

        def delete() -> None:
            key = self._key(path)
            with contextlib.suppress(FileNotFoundError):
                # S3 is content to delete what is not there.
                obstore.delete(self._store, [key, *(meta["path"] for meta in self._below(path))])

        self._quickly(delete, lambda: self._by_fsspec().delete(path), path)

    def uploads(self) -> list[Upload]:
        """See ``Storage.uploads``."""
        return self._by_fsspec().uploads()

    def abort_upload(self, upload: Upload) -> bool:
        """See ``Storage.abort_upload``."""
        return self._by_fsspec().abort_upload(upload)

    def _fetch(self, path: str) -> Any:
        import obstore

        return memoryview(obstore.get(self._store, self._key(path)).bytes())

    def _below(self, folder: str) -> Iterator[Any]:
        import obstore

        key = self._key(folder)
        with contextlib.suppress(FileNotFoundError):  # the bucket
            for page in obstore.list(self._store, key or None):
                yield from (meta for meta in page if meta["path"] != key)

    def _quickly(self, quick: Callable[[], T], slowly: Callable[[], T], path: str) -> T:
        """``quick()``; where that fails for a reason of its own, ``slowly()``, once in a row."""
        from obstore.exceptions import BaseError

        if self._rescued >= _IN_A_ROW or _threads_lost or not is_plain_key(path):
            return slowly()
        try:
            result = quick()
        except FileNotFoundError:
            text = "no such object or bucket"
            raise InputMissingError(errno.ENOENT, text, self._named(path)) from None
        except BaseError:
            result = slowly()
            self._rescued += 1
            return result
        self._rescued = 0
        return result

    def _by_fsspec(self) -> ObjectStorage:
        if self._slow is None:
            self._slow = ObjectStorage(self.url)
        return self._slow

    def _key(self, path: str) -> str:
        return "/".join([*filter(None, [self._root]), *parts_of(path, self.url)])

    def _named(self, path: str) -> str:
        return f"{self.url}/{path}"
