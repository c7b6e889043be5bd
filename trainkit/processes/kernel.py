"""What the kernel does for a parent and for a child when the other is gone: prctl(2)."""

import ctypes
import os
import signal

__all__ = ["adopt_orphans", "die_with_parent"]

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 1, 36, 37

_libc = ctypes.CDLL(None, use_errno=True)


def adopt_orphans(wanted: bool = True) -> bool:
    """Become the parent of descendants whose own parent ends, as PID 1 is for all; or no more.

    Returns:
        Whether this process was that before.

    Raises:
        OSError: the kernel refused.
    """
    before = ctypes.c_int(0)
    _libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    _prctl(_PR_SET_CHILD_SUBREAPER, int(wanted))
    return bool(before.value)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies.

    With SIGKILL, because a rank in a collective may never run a handler, and nothing committed
    is lost by it.

    Raises:
        OSError: the kernel refused.
    """
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}): {os.strerror(code)}")
