"""From a URL to the storage behind it."""

import os
from urllib.parse import unquote, urlsplit

from trainkit.config import environ, settings
from trainkit.errors import UsageError
from trainkit.storage import obstore
from trainkit.storage.base import Storage
from trainkit.storage.credentials import refuse_credentials
from trainkit.storage.local import LocalStorage
from trainkit.storage.objects import ObjectStorage

__all__ = ["open_storage"]


def open_storage(url: str | os.PathLike[str]) -> Storage:
    """Open the storage that ``url`` names; nothing is read or made yet.

    Args:
        url: a local path, taken from the current folder if relative, ``file:///path``, or a
            URL of an object store such as ``s3://bucket/folder``: any scheme of fsspec's whose
            file system can refuse to write over an object.

    Raises:
        UsageError: an empty URL, one with credentials in it, or an unknown scheme.
        DependencyError: the file system of this scheme is not installed.
        EnvironmentFaultError: it cannot refuse to write over an object.
    """
    text = os.fspath(url)
    if not text.strip():
        raise UsageError("an empty checkpoint URL; expected a local path or file:///path")
    refuse_credentials(text)
    if "://" not in text:
        return LocalStorage(text)
    parts = urlsplit(text)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return LocalStorage(unquote(parts.path))
    if parts.scheme == "file":
        raise UsageError(
            f"{text}: a file URL names no host, but this one names {parts.netloc!r}. "
            f"Write file:///path, with three slashes."
        )
    variables = environ()
    if settings(variables).object_store == "auto" and obstore.is_usable(text, variables):
        return obstore.ObstoreStorage(text, variables)
    return ObjectStorage(text)
