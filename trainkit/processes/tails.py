"""The last lines that a process wrote, for a report of its end."""

import re
import threading
from collections import deque

from trainkit.processes.lines import SEQUENCE

__all__ = ["Tail"]

_KEPT = 128 * 1024
"""Bytes of a stream that are kept, at least."""

_LONGEST = 2000
"""Characters of a line that are told."""

_CONTROL = re.compile(SEQUENCE + r"|[^\t -\x7e\xa0-\U0010ffff]")
"""Colours, movements of a cursor, and all else that a report or a YAML file could not show."""


class Tail:
    """Keeps the end of one stream in bounded memory; may be read from any thread."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._lock = threading.Lock()
        self._chunks: deque[bytes] = deque()
        self._size = 0

    def add(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        with self._lock:
            self._chunks.append(data)
            self._size += len(data)
            while self._size - len(self._chunks[0]) >= _KEPT:
                self._size -= len(self._chunks.popleft())
            if len(self._chunks) > 1024:  # many small ones take more than their bytes
                joined = b"".join(self._chunks)
                self._chunks = deque([joined])

    def lines(self, count: int) -> list[str]:
        """The last ``count`` lines, oldest first, without colours; of a bar its last state."""
        with self._lock:
            text = b"".join(self._chunks)
        found: list[str] = []
        for line in reversed(text.removesuffix(b"\n").split(b"\n") if text else []):
            if len(found) >= count:
                break
            state = line.rstrip(b"\r").rpartition(b"\r")[2]
            shown = _CONTROL.sub("", state[: 4 * _LONGEST].decode(errors="replace"))
            found.append(shown if len(shown) <= _LONGEST else shown[:_LONGEST] + " …")
        return found[::-1]
