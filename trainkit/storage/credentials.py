"""No secret in a URL that trainkit takes, nor in an error that it passes on."""

import os
import re
from urllib.parse import SplitResult, urlsplit

from trainkit.errors import UsageError
from trainkit.redaction import without_secrets

__all__ = ["has_secret", "refuse_credentials"]

_CONTAINER = ("abfs", "abfss")
"""Schemes where ``container@account`` stands for what a bucket is elsewhere."""

_ONE_SLASH = re.compile(r"(file|https?|s3a?|gs|gcs|az|abfss?|adl|memory):/(?!/)", re.IGNORECASE)
"""A URL that was mistyped, and no folder: a secret in it would become a name on disk."""

_PORT = re.compile(r":\d{1,5}$")


def refuse_credentials(url: str | os.PathLike[str]) -> None:
    """Refuse a URL with credentials in it; it is in no message, and nothing is opened.

    Anything that is no URL, such as a local path, passes; a URL with one slash is one.

    Raises:
        UsageError: it has some, or looks as though it had.
    """
    text = os.fspath(url)
    if mistyped := _ONE_SLASH.match(text):
        raise UsageError(
            f"a URL that begins with {mistyped[0]}; expected two slashes, as in s3://bucket/folder "
            f"or file:///path"
        )
    # As ``simplecache::s3://…`` has it, each file system of a chain may have its own.
    for part in text.split("::"):
        if "://" in part and _has_credentials(_split(part)):
            raise UsageError(
                f"a {part.partition('://')[0]}:// URL with credentials in it: they would be in "
                f"every log. Give them in the environment, as the store's own tools find them."
            )


def has_secret(error: BaseException) -> bool:
    """Whether ``error``, or one that it came from, would show credentials of a URL."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        if without_secrets(str(one)) != str(one):
            return True
        seen.add(id(one))
        pending += [one.__cause__, one.__context__]
    return False


def _split(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError:
        raise UsageError(
            f"a {text.partition('://')[0]}:// URL that cannot be read: expected s3://bucket/folder"
        ) from None


def _has_credentials(parts: SplitResult) -> bool:
    if parts.query and parts.scheme != "file":  # tokens and signatures stand there
        return True
    if "@" in parts.netloc and not (parts.scheme in _CONTAINER and ":" not in parts.netloc):
        return True
    # A secret may hold a slash, so that urlsplit takes half of it for a host with a strange port.
    # In the name of an access point of S3 there are colons, too.
    bucket = _PORT.sub("", parts.netloc)
    return ":" in bucket and not bucket.startswith(("arn:", "["))
