"""Signs of life of a rank, for the launcher: which step it has done, at no cost to the step.

A thread writes a few numbers into a small file that the launcher reads. What counts is that the
step changes, not that the thread lives: a rank that hangs in a collective has lively threads.
"""

import contextlib
import mmap
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Heartbeat", "Pulse"]

_FORM = struct.Struct("<qqq")
_EVERY = 0.25
"""Seconds between two looks at the step."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a rank has written."""

    step: int
    """The last step that was done; -1 before the first."""
    polls: int
    """How often the program has asked whether it is to stop, as evaluation loops do."""
    beats: int
    """How often the rank has written: whether the process runs at all."""

    @classmethod
    def read(cls, path: Path) -> "Pulse | None":
        """What a rank has written to ``path``; None before it has."""
        try:
            return cls(*_FORM.unpack(path.read_bytes()[: _FORM.size]))
        except (OSError, struct.error):
            return None


class Heartbeat:
    """Writes the pulse of this rank until it is closed."""

    def __init__(self, path: str, look: Callable[[], tuple[int, int]]) -> None:
        """Begin.

        Args:
            path: of the file.
            look: returns the step and the polls of now; called from a thread.
        """
        self._look = look
        self._over = threading.Event()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, _FORM.size)
            self._memory = mmap.mmap(descriptor, _FORM.size)
        finally:
            os.close(descriptor)
        self._thread = threading.Thread(target=self._run, name="trainkit-heartbeat", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; the launcher no longer expects a sign of life."""
        self._over.set()
        self._thread.join()
        with contextlib.suppress(BufferError):
            self._memory[:] = _FORM.pack(-1, 0, 0)
            self._memory.close()

    def _run(self) -> None:
        beats = 0
        while not self._over.is_set():
            beats += 1
            self._memory[:] = _FORM.pack(*self._look(), beats)
            self._over.wait(_EVERY)
