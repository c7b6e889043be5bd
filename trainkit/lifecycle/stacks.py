"""A rank's Python stacks, for the launcher to show when the rank hangs."""

import contextlib
import faulthandler
import os
import signal

__all__ = ["DUMP_SIGNAL", "write_stacks_to"]

DUMP_SIGNAL = signal.SIGRTMAX - 3
"""Asks for the stacks; a real-time one, since programs use SIGUSR1 and 2."""

_files: list[int] = []


def write_stacks_to(path: str) -> None:
    """From now on write the stacks of all threads to ``path`` when ``DUMP_SIGNAL`` comes.

    faulthandler does so in the C handler, also while the main thread is stuck in C.
    """
    with contextlib.suppress(OSError):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        _files.append(file)
        faulthandler.register(DUMP_SIGNAL, file=file, all_threads=True, chain=False)
