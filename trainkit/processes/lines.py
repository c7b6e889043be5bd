"""Bytes of one stream, cut into lines as they are to be shown: whole, in part, or as bars."""

import time

__all__ = ["Lines"]

_LONG = 64 * 1024
"""Bytes of a line that are kept while it has no end; more are shown in parts."""
_QUIET = 0.2
"""Seconds after which the beginning of a line, a question say, is shown without its end."""
_BAR_IN_A_LOG = 10.0
"""Seconds between two states of a progress bar that are kept, where no terminal shows it."""


class Lines:
    """What of a stream is ready to be shown.

    A bar is a line that is written over by carriage returns: its last state counts. A terminal
    gets each, a log one every ten seconds and the last.
    """

    def __init__(self, *, terminal: bool, parts: bool = True) -> None:
        """Begin.

        Args:
            terminal: whether a terminal shows what comes out.
            parts: whether the beginning of a line is shown before its end.
        """
        self._terminal = terminal
        self._parts = parts
        self._rest = bytearray()
        self._came = 0.0
        self._bar_shown = time.monotonic()

    def take(self, data: bytes) -> list[tuple[bytes, bool]]:
        """Take in what was read; pieces to show, each with whether it ends a line."""
        self._came = time.monotonic()
        self._rest += data
        *whole, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        pieces = [(_last_state(line), True) for line in whole]
        if b"\r" in self._rest:
            # Whatever came before the last return but one will never be seen.
            self._rest = bytearray(_last_states(bytes(self._rest)))
        elif len(self._rest) > _LONG:
            pieces.append((bytes(self._rest), False))
            self._rest.clear()
        return pieces

    def due(self, now: float) -> tuple[bytes, bool] | None:
        """The piece to show though its line has no end yet, if there is one."""
        if not self.waits or not self._parts:
            return None
        if b"\r" in self._rest:
            state = _last_state(bytes(self._rest))
            if self._terminal and now - self._came >= _QUIET / 2:
                self._rest = bytearray(b"\r")
                return b"\r" + state, False
            if not self._terminal and now - self._bar_shown >= _BAR_IN_A_LOG:
                self._bar_shown = now
                return state, True
            return None
        if now - self._came < _QUIET:
            return None
        piece = bytes(self._rest)
        self._rest.clear()
        return piece, False

    @property
    def waits(self) -> bool:
        """Whether something is there that ``due`` may show later."""
        return bool(self._rest) and self._rest != b"\r"

    def end(self) -> tuple[bytes, bool] | None:
        """The last piece, once the stream is at its end."""
        if not self.waits:
            return None
        piece = _last_state(bytes(self._rest))
        self._rest.clear()
        return piece, True


def _last_state(line: bytes) -> bytes:
    """What a terminal would show of a line, as far as bars go: all after the last return."""
    if b"\r" not in line:
        return line
    line = line.rstrip(b"\r")
    return line.rpartition(b"\r")[2]


def _last_states(line: bytes) -> bytes:
    before, _, last = line.rpartition(b"\r")
    return before.rpartition(b"\r")[2] + b"\r" + last
