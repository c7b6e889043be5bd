"""From what went wrong to an exit code and a hint."""

import errno
from collections.abc import Iterator

from trainkit.errors import ExitCode, TrainkitError

__all__ = ["exit_code_of", "hint_for"]

_STORE_AND_PEER_ERRORS = frozenset({"DistNetworkError", "DistStoreError", "DistBackendError"})
"""torch's classes, by name: this room imports no framework."""

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
    if any("duplicate gpu" in str(link).lower() for link in _chain(error)):
        return ExitCode.ENVIRONMENT  # two ranks on one device: trying again changes nothing
    passing = is_peer_loss(error) or is_storage_loss(error)
    return ExitCode.RETRYABLE if passing else ExitCode.USER_CODE


def is_storage_loss(error: BaseException) -> bool:
    """Whether ``error`` is an I/O fault of a disk, mount or network, which may pass."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and error.errno in _IO_FAULTS


def is_peer_loss(error: BaseException) -> bool:
    """Whether ``error`` says that another rank, or the way to it, is gone."""
    for link in _chain(error):
        if type(link).__name__ in _STORE_AND_PEER_ERRORS:
            return True
        if type(link) is RuntimeError and any(w in str(link).lower() for w in _PEER_WORDS):
            return True
    return False


def hint_for(error: BaseException) -> str:
    """What the reader can do about ``error``; empty where nothing useful is known."""
    if isinstance(error, TrainkitError):
        return ""
    if is_peer_loss(error):
        return "another rank ended first: its log has the cause"
    text = str(error).lower()
    if type(error).__name__ == "OutOfMemoryError" or "cuda out of memory" in text:
        return "the GPU's memory is full: a smaller batch, bf16, or activation checkpointing"
    if "bus error" in text or "shared memory" in text or "shm" in text:
        return "shared memory (dev/shm) is too small: mount an emptyDir with medium: Memory"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full"
    if isinstance(error, MemoryError):
        return "the host's memory, or the pod's limit, is used up"
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, newest first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
