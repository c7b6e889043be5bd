"""Run Hydra's mpiexec so that a failing rank ends the job, with that rank's exit code.

    python -m trainkit.launch.mpi.hydra TOKEN -- mpiexec …

MPICH's mpiexec ends with the bitwise OR of all codes and Intel's with 255, and both let the other
ranks wait for ever if one ends that never called MPI_Init. So each rank says on stderr, in a line
with the token, how it ended.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from threading import Timer

from trainkit import config
from trainkit.errors import EnvironmentFaultError, ExitCode

__all__ = ["FORWARDED", "ending", "main"]

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that go on to mpiexec, which hands them to all ranks."""

_END_WITHIN = 5.0
"""Seconds between the notice to the ranks that are left and the kill."""
_LINE = 256


def ending(token: str, rank: int, code: int) -> str:
    """The line in which a rank says how it ended; short, so that one write keeps it whole."""
    return f"trainkit: rank {rank} ended with exit code {code} [{token}]\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command after ``--``; returns the exit code of the rank that failed first."""
    words = list(sys.argv[1:] if argv is None else argv)
    token, command = words[0], words[2:]
    try:
        # A group of its own: its proxies hold its stderr, and are to end with it.
        process = subprocess.Popen(  # noqa: S603
            command, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as reason:
        print(f"trainkit: cannot run {command[0]!r}: {reason.strerror}", file=sys.stderr)
        return int(EnvironmentFaultError.exit_code)
    for number in FORWARDED:
        signal.signal(number, lambda number, _: process.send_signal(number))
    first, timer = _relay(process, token)
    code = process.wait()
    if timer is not None:
        timer.cancel()
    if first is not None:
        return first
    return code if code >= 0 else 128 - code


def _relay(process: subprocess.Popen[bytes], token: str) -> tuple[int | None, Timer | None]:
    """Pass stderr on until its end.

    Returns:
        The first code that a rank told, if one did, and what kills the others then.
    """
    assert process.stderr is not None  # noqa: S101 - as Popen was asked for a pipe
    pattern = re.compile(rf"ended with exit code (\d+) \[{re.escape(token)}\]".encode())
    first: int | None = None
    tail = b""
    timer: Timer | None = None
    while chunk := os.read(process.stderr.fileno(), 65536):
        _write(chunk)
        tail += chunk
        found = pattern.search(tail)
        if found and first is None:
            first = int(found[1])
            timer = _end(process, first)
        tail = tail[-_LINE:]
    return first, timer


def _end(process: subprocess.Popen[bytes], code: int) -> Timer:
    """Give the other ranks notice, and end them by force if they do not follow."""
    seconds = _END_WITHIN
    if code == ExitCode.PREEMPTED:
        # All of them were told, and are about to end by themselves with what they saved.
        seconds = config.settings().grace_period
    else:
        process.terminate()
    timer = Timer(seconds, _kill, [process.pid])
    timer.daemon = True
    timer.start()
    return timer


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _write(chunk: bytes) -> None:
    while chunk:
        try:
            chunk = chunk[os.write(2, chunk) :]
        except BlockingIOError:
            time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
