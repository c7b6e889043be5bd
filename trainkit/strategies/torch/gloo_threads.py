"""gloo's threads at the end of a rank: none may still want the interpreter when that is going.

A thread of gloo that drops the last reference to a collective started in a backward pass needs
the interpreter's lock for it: torch has kept the Python context of that pass there. Until Python
3.14 a thread that asks for the lock of an interpreter which is being taken down is ended by force,
and C++ aborts the process for that, with -6 in place of its exit code. Groups whose threads are
joined first are safe, but a DistributedDataParallel keeps its group for as long as it lives.
"""

import logging
import os
import time
from pathlib import Path

from trainkit.errors import DeadlineError
from trainkit.waiting import Deadline, wait_until

__all__ = ["let_gloo_finish"]

log = logging.getLogger(__name__)

_THREADS = "pt_gloo_runloop"
"""The name that torch gives them; the kernel keeps 15 characters of a name."""
_TURN = 0.001
"""Seconds in which a thread that waits for the lock gets it, or is at least about to run."""
_PATIENCE = 10.0
"""Seconds for what takes microseconds, unless the processor is given to others."""


def let_gloo_finish() -> None:
    """Return once gloo's threads sleep: they then have nothing in hand, or wait for a peer.

    Where the kernel does not say (other systems than Linux) it returns at once.
    """
    try:
        wait_until(
            _sleep_for_good,
            what="gloo's threads to put down what they have done",
            deadline=Deadline(_PATIENCE),
        )
    except DeadlineError as late:
        log.warning("%s", late)


def _sleep_for_good() -> bool:
    """Whether they sleep, and not for the lock, which this thread holds while it looks."""
    if _is_running():
        return False
    time.sleep(_TURN)
    return not _is_running()


def _is_running() -> bool:
    try:
        tasks = os.listdir("/proc/self/task")
    except OSError:
        return False
    for task in tasks:
        try:
            text = Path(f"/proc/self/task/{task}/stat").read_bytes()
        except OSError:
            continue  # it has ended
        name, _, rest = text.partition(b"(")[2].rpartition(b") ")
        if name.decode(errors="replace") == _THREADS and rest[:1] != b"S":
            return True
    return False
