"""Errors of the stores' own libraries, told as trainkit's own: in one line, and with no secret."""

import contextlib
import errno
import logging
from collections.abc import Iterator

from trainkit.errors import InputMissingError, NoPermissionError, TrainkitError
from trainkit.redaction import without_secrets
from trainkit.storage.credentials import has_secret

__all__ = ["telling_of", "was_never_sent", "without_tracebacks"]

_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "CredentialUnavailableError",
}
"""Errors of the stores' own libraries that mean: nobody said who we are."""

_HOW = "give credentials as the store's own tools find them"

_STATUS = ("status_code", "code", "status")
"""Where the errors of Azure's, Google's and aiohttp's clients have the status of an answer."""

_UNREACHABLE = {
    "ClientConnectorError",
    "ClientConnectorDNSError",
    "ConnectTimeoutError",
    "EndpointConnectionError",
    "ServiceRequestError",
}
"""Errors of those libraries that mean: nobody was reached, though it was tried again and again."""

_NO_CONNECTION = {"ClientConnectorError", "gaierror"}
"""What ``EndpointConnectionError`` of S3's library was made of, where there was no connection."""

_THEIRS = (TypeError, AttributeError, NameError, AssertionError, ImportError)
"""Bugs and missing libraries: no word of a store's."""

_LONGEST = 400
"""Characters of an error's text; some hold the whole of a server's answer."""


@contextlib.contextmanager
def telling_of(where: str) -> Iterator[None]:
    """Name ``where``, an object or a root, in errors; refusals and absences become trainkit's own.

    Raises:
        InputMissingError: there is no such object, or no such bucket.
        NoPermissionError: the store refuses, or there are no credentials.
        OSError: anything else that a store or its library raises; it has an ``errno``.
    """
    try:
        yield
    except (TrainkitError, FileExistsError, *_THEIRS):
        raise
    except FileNotFoundError as error:
        text = "no such object or bucket"
        raise InputMissingError(errno.ENOENT, text, where) from _shown(error)
    except PermissionError as error:
        raise NoPermissionError(errno.EACCES, _text(error), where) from _shown(error)
    except Exception as error:
        # The stores' libraries have trees of errors of their own. 401 asks who we are, 403 knows.
        if any(type(one).__name__ in _NO_CREDENTIALS for one in _chain(error)):
            text = f"{_text(error)}: {_HOW}"
            raise NoPermissionError(errno.EACCES, text, where) from _shown(error)
        if any(_has_status(one, 404) for one in _chain(error)):
            text = "no such object or bucket"
            raise InputMissingError(errno.ENOENT, text, where) from _shown(error)
        if any(_has_status(one, 401) for one in _chain(error)):
            text = f"{_text(error)}: {_HOW}"
            raise NoPermissionError(errno.EACCES, text, where) from _shown(error)
        if any(_is_refusal(one) for one in _chain(error)):
            raise NoPermissionError(errno.EACCES, _text(error), where) from _shown(error)
        number = getattr(error, "errno", None)
        # An error of a name that cannot be resolved has a negative number of its own.
        known = number if isinstance(number, int) and number > 0 else errno.EIO
        raise OSError(known, _text(error), where) from _shown(error)


def was_never_sent(error: BaseException) -> bool:
    """Whether a library gave up on a request because it reached no server.

    Such a request took its time already, up to minutes, and another would take as long.
    """
    return any(_is_unreachable(one) for one in _chain(error))


def without_tracebacks(record: logging.LogRecord) -> bool:
    """A filter for the logger of a library that logs, with its traceback, what it then raises."""
    if not logging.getLogger(record.name).isEnabledFor(logging.DEBUG):
        record.exc_info = None
    return True


def _chain(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what it was raised from: adlfs wraps what Azure's library raised."""
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__


def _is_unreachable(error: BaseException) -> bool:
    if type(error).__name__ not in _UNREACHABLE:
        return False
    # aiobotocore says so of connections, too, that broke when all was sent, and maybe done.
    cause = getattr(error, "kwargs", {}).get("error")
    names = {base.__name__ for base in type(cause).__mro__}
    return cause is None or not names.isdisjoint(_NO_CONNECTION)


def _has_status(error: BaseException, status: int) -> bool:
    return any(getattr(error, name, None) == status for name in _STATUS)


def _is_refusal(error: BaseException) -> bool:
    # gcsfs says it in words alone.
    said = isinstance(error, OSError) and str(error).startswith("Forbidden:")
    return said or _has_status(error, 403)


def _text(error: BaseException) -> str:
    """What an error says, in one line."""
    text = getattr(error, "strerror", None) or str(error)
    # Azure's errors go on with numbers of the request, headers and the whole answer.
    text = " ".join(text.partition("\nRequestId:")[0].split()) or type(error).__name__
    text = without_secrets(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _shown(error: BaseException) -> BaseException | None:
    """The error as a cause that tracebacks may show; None where a secret is in it.

    The address of a server or a proxy may have a password in it, and a token may be in that of an
    object.
    """
    return None if has_secret(error) else error
