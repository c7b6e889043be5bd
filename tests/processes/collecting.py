"""A reader of a pump's output, and a terminal that shows what a person would see."""

import os
import re
import threading
from collections.abc import Callable

from trainkit.waiting import Deadline, wait_until

SECONDS = 60.0
"""Until a test gives up; nothing takes nearly as long."""


class Reader:
    """Reads one end of a pipe or pseudo-terminal to its end, in a thread."""

    def __init__(self, fd: int) -> None:
        """Read from ``fd`` and own it."""
        self._fd = fd
        self._data = bytearray()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except OSError:  # EIO: a terminal that nobody has open
                data = b""
            if not data:
                os.close(self._fd)
                return
            self._data += data

    @property
    def data(self) -> bytes:
        """What was read up to now."""
        return bytes(self._data)

    def await_data(self, is_there: Callable[[bytes], bool]) -> bytes:
        """Wait until what was read satisfies ``is_there``."""
        wait_until(
            lambda: is_there(self.data),
            what="output",
            deadline=Deadline(SECONDS),
            whom=lambda: f"{self.data[-300:]!r} so far",
        )
        return self.data

    def finish(self) -> bytes:
        """Wait for the end, and return all."""
        self._thread.join(SECONDS)
        assert not self._thread.is_alive(), "the pipe has no end"
        return self.data


def piped() -> tuple[Reader, int]:
    """A reader, and the descriptor that leads to it."""
    read, write = os.pipe()
    return Reader(read), write


def screen(data: bytes) -> list[str]:
    r"""The rows that a terminal shows after ``data``: ``\r``, ``\n``, erasing, colours ignored."""
    rows, column = [""], 0
    for part in re.split(r"(\x1b\[K|\x1b\[\d*m|\r|\n)", data.decode()):
        if part == "\n":
            rows.append("")
            column = 0
        elif part == "\r":
            column = 0
        elif part == "\x1b[K":
            rows[-1] = rows[-1][:column]
        elif not part.startswith("\x1b"):
            rows[-1] = rows[-1][:column] + part + rows[-1][column + len(part) :]
            column += len(part)
    return rows
