"""Bytes from a URL: http(s) by the standard library, everything else by fsspec."""

import contextlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import IO, Any
from urllib.parse import urlsplit

from trainkit.errors import DependencyError, UsageError

__all__ = ["RefusedError", "open_url"]

_CHUNK = 1 << 20
_SILENCE = 30.0
"""Seconds without a byte after which a server counts as gone."""
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
"""HTTP answers that may be another one a moment later."""
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure"}

Opened = tuple[int | None, Iterator[bytes]]


class RefusedError(Exception):
    """A place did not give what was asked for; never leaves trainkit.data."""

    def __init__(self, reason: str, *, may_pass: bool) -> None:
        """Say why, and whether the same question may be answered a moment later."""
        super().__init__(reason)
        self.may_pass = may_pass


@contextlib.contextmanager
def open_url(url: str) -> Iterator[Opened]:
    """Open a URL for reading.

    Yields:
        The size in bytes, if it is announced, and the content in chunks.

    Raises:
        RefusedError: it is not there, or the connection failed, also while reading.
        DependencyError: the package for this kind of URL is not installed.
        UsageError: this is no URL.
    """
    scheme = urlsplit(url).scheme
    if not scheme:
        raise UsageError(f"expected a URL such as https://…, s3://… or file://…, found {url!r}")
    opened = _http(url) if scheme in ("http", "https") else _fsspec(url, scheme)
    with opened as (size, stream):
        yield size, stream


@contextlib.contextmanager
def _http(url: str) -> Iterator[Opened]:
    # Some mirrors refuse the library's own name.
    request = urllib.request.Request(url, headers={"User-Agent": "trainkit"})  # noqa: S310
    try:
        answer = urllib.request.urlopen(request, timeout=_SILENCE)  # noqa: S310
    except urllib.error.HTTPError as refusal:
        refusal.close()
        reason = f"HTTP {refusal.code} {refusal.reason}"
        raise RefusedError(reason, may_pass=refusal.code in _TRANSIENT) from None
    except urllib.error.URLError as failure:
        raise RefusedError(str(failure.reason), may_pass=True) from None
    except (OSError, http.client.HTTPException) as failure:
        raise RefusedError(_words(failure), may_pass=True) from None
    with answer:
        length = answer.headers.get("Content-Length")
        yield (int(length) if length else None), _http_chunks(answer)


def _http_chunks(answer: Any) -> Iterator[bytes]:
    try:
        while chunk := answer.read(_CHUNK):
            yield chunk
    except (OSError, http.client.HTTPException) as failure:
        raise RefusedError(f"the connection broke: {_words(failure)}", may_pass=True) from None


@contextlib.contextmanager
def _fsspec(url: str, scheme: str) -> Iterator[Opened]:
    import fsspec

    try:
        stream: IO[bytes] = fsspec.open(url, "rb").open()
    except ImportError as missing:
        extra = _EXTRAS.get(scheme)
        how = f'pip install "trainkit[{extra}]"' if extra else str(missing)
        raise DependencyError(f"{scheme}:// needs a package that is not here: {how}") from None
    except ValueError as unknown:
        raise UsageError(f"{scheme}:// cannot be fetched from: {unknown}") from None
    except FileNotFoundError:
        raise RefusedError("not found", may_pass=False) from None
    except Exception as failure:  # each store's client has errors of its own
        raise RefusedError(_words(failure), may_pass=False) from None
    with stream:
        size = getattr(stream, "size", None)
        yield (size if isinstance(size, int) else None), _file_chunks(stream)


def _file_chunks(stream: IO[bytes]) -> Iterator[bytes]:
    try:
        while chunk := stream.read(_CHUNK):
            yield chunk
    except Exception as failure:  # each store's client has errors of its own
        raise RefusedError(f"reading broke: {_words(failure)}", may_pass=True) from None


def _words(failure: Exception) -> str:
    return str(failure) or type(failure).__name__
