"""A worker pod that is to end: the ranks in it are told, and get the time to save."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from trainkit.processes.kernel import die_with_parent
from trainkit.processes.table import descendants
from trainkit.waiting import Deadline

__all__ = ["local_ranks", "stay_with"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_MARKS = (b"OMPI_COMM_WORLD_RANK=", b"PMI_RANK=")
_PAUSE = 0.2
"""Seconds between two looks at what runs."""
_DAEMONS = 5.0
"""Seconds for mpirun's daemon to end, once its ranks have."""


def stay_with(command: Sequence[str]) -> int:
    """Run a server by which mpirun starts ranks, until it ends or this process is to end.

    A signal goes on to the ranks of this pod, each of which has its whole job stop after one step
    and save. This returns once they are gone; the launcher above kills what its grace period
    has not sufficed for.

    Returns:
        The exit code: that of the server, or 128 + the signal.

    Raises:
        OSError: the server cannot be run.
    """
    heard: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: heard.append(number)) for number in _SIGNALS
    }
    try:
        return _serve(command, heard)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(command: Sequence[str], heard: list[int]) -> int:
    server = subprocess.Popen(list(command), preexec_fn=die_with_parent)  # noqa: S603
    while not heard:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = server.wait(_PAUSE)
            if not heard:
                return code if code >= 0 else 128 - code
    told: set[int] = set()
    while ranks := local_ranks(os.getppid()):
        for pid in ranks - told:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        told |= ranks
        signal.sigtimedwait((), _PAUSE)
    # mpirun takes a daemon that goes before it is told to for a failure of the host.
    deadline, own = Deadline(_DAEMONS), {os.getpid(), server.pid}
    while not deadline.passed and descendants(os.getppid()).keys() - own:
        signal.sigtimedwait((), _PAUSE)
    server.terminate()
    server.wait()
    return 128 + heard[0]


def local_ranks(ancestor: int) -> set[int]:
    """Process ids of MPI ranks below ``ancestor``; what ranks have started is not among them."""
    below = descendants(ancestor)
    marked = {pid for pid, one in below.items() if not one.zombie and _is_marked(pid)}
    return {pid for pid in marked if below[pid].parent not in marked}


def _is_marked(pid: int) -> bool:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is another user's
        return False
    return any(variable.startswith(_MARKS) for variable in variables)
