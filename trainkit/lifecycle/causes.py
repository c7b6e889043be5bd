"""From what went wrong to an exit code and a hint."""

import errno
from collections.abc import Iterator

from trainkit.errors import DeadlineError, ExitCode, PeerLostError, TrainkitError
from trainkit.lifecycle.hints import PEER_GONE, hint_of_text

__all__ = [
    "exit_code_of",
    "hint_for",
    "is_collective_error",
    "is_peer_loss",
    "is_watchdog_abort",
    "message_of",
    "tells_peer_loss",
]

_PEER_ERRORS = frozenset(
    {
        *("DistNetworkError", "DistStoreError", "DistBackendError"),
        *(PeerLostError.__name__, DeadlineError.__name__),
    }
)
"""torch's classes by name, since this room imports no framework; and our own."""

_IO_FAULTS = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENOTCONN,
    }
)
"""What a mount that is lost for a while answers with."""

_PEER_WORDS = (
    "connection closed by peer",
    "connection reset by peer",
    "connectfullmesh failed",
    "timed out waiting",
    "broken pipe",
    "socket timeout",
    "remote process exited",
    "nccl error",
    "watchdog caught collective",
)
"""Parts of messages, in lower case, with which gloo and NCCL report that a peer is gone."""

_COLLECTIVE_WORDS = ("/src/collective/", "NCCL failure")
"""Where XGBoost's collectives, whatever becomes of them, raise what they have to say."""

_HARDWARE_WORDS = (
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "gpu is lost",
    "fallen off the bus",
    # torch's loader, of a worker that the kernel or a person killed
    "killed by signal: killed",
)
"""What another start, perhaps on another node, may not meet again."""

_WATCHDOG_WORDS = (
    "watchdog caught collective operation timeout",
    "watchdog got stuck for",
    "nccl operations have failed or timed out",
    "process group watchdog thread terminated with exception",
)
"""What torch's watchdog of NCCL prints, in lower case, before it aborts the process."""


def exit_code_of(error: BaseException) -> int:
    """The exit code that tells an operator what to do about ``error``.

    Peers, network and store: 138, run me again. Errors of trainkit: their own. Ctrl-C: 130.
    ``sys.exit(n)``: n. Anything else is the user's code: 70.
    """
    if isinstance(error, TrainkitError):
        code = getattr(error, "code", None)
        return code if isinstance(code, int) else int(error.exit_code)
    if isinstance(error, SystemExit):
        if error.code is None:
            return 0
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    if any("duplicate gpu" in message_of(link).lower() for link in _chain(error)):
        return ExitCode.ENVIRONMENT  # two ranks on one device: trying again changes nothing
    passing = is_peer_loss(error) or is_storage_loss(error) or _is_hardware_loss(error)
    return ExitCode.RETRYABLE if passing else ExitCode.USER_CODE


def is_storage_loss(error: BaseException) -> bool:
    """Whether ``error`` is an I/O fault of a disk, mount or network, which may pass."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and error.errno in _IO_FAULTS


def is_peer_loss(error: BaseException) -> bool:
    """Whether ``error`` says that another rank, or the way to it, is gone."""
    if isinstance(error, TrainkitError):
        return isinstance(error, PeerLostError | DeadlineError)
    return any(tells_peer_loss(type(link).__name__, message_of(link)) for link in _chain(error))


def tells_peer_loss(error: str, message: str) -> bool:
    """``is_peer_loss`` of what is known in words alone.

    Args:
        error: name of the error's class.
        message: of the error.
    """
    if error in _PEER_ERRORS or is_collective_error(error, message):
        return True
    return error == "RuntimeError" and any(word in message.lower() for word in _PEER_WORDS)


def is_collective_error(error: str, message: str) -> bool:
    """Whether XGBoost says that a collective of its ranks did not come to its end.

    Args:
        error: name of the error's class.
        message: of the error, which begins with the place in XGBoost's source.
    """
    return error == "XGBoostError" and any(word in message for word in _COLLECTIVE_WORDS)


def is_watchdog_abort(output: str) -> bool:
    """Whether a process that aborted was ended by torch's watchdog of collectives.

    The watchdog also meets the errors of a kernel that failed on the GPU: those are the rank's own.
    """
    text = output.lower()
    own = "cuda error:" in text and "collective operation timeout" not in text
    return not own and any(word in text for word in _WATCHDOG_WORDS)


def hint_for(error: BaseException) -> str:
    """What the reader can do about ``error``; empty where nothing useful is known."""
    if isinstance(error, TrainkitError):
        return ""
    if is_peer_loss(error):
        return PEER_GONE
    return hint_of_text(
        "\n".join(f"{type(link).__name__}: {message_of(link)}" for link in _chain(error))
    )


def message_of(error: BaseException) -> str:
    """The error's message; one whose own ``__str__`` fails must not hide that it was raised."""
    try:
        return str(error)
    except Exception as worse:
        return f"<its message cannot be shown: {type(worse).__name__}>"


def _is_hardware_loss(error: BaseException) -> bool:
    texts = (message_of(link).lower() for link in _chain(error))
    return any(word in text for text in texts for word in _HARDWARE_WORDS)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, newest first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
