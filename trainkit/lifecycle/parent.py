"""A rank whose launcher is killed must not go on training alone."""

import ctypes
import logging
import signal

__all__ = ["die_with_parent"]

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have the kernel end this process when its parent dies (prctl(2), PR_SET_PDEATHSIG).

    torchrun gives its ranks sessions of their own, so a killed agent leaves them running, with
    their GPUs and ports. SIGKILL, because a rank in a collective may never run a handler, and
    nothing committed is lost by it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        log.debug("prctl(PR_SET_PDEATHSIG) failed: errno %d", ctypes.get_errno())
