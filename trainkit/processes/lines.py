"""Cuts what a process writes into lines, parts of lines and states of progress bars.

Pure: bytes and times go in, cuts come out. Each stream of each process has a cutter of its own,
whose memory is bounded whatever the process writes.
"""

import re
from typing import NamedTuple

__all__ = ["LIMIT", "SEQUENCE", "Cut", "LineCutter", "Lines", "Piece", "State"]

LIMIT = 64 * 1024
"""Bytes of a line without end that are held; a longer line is passed on in pieces."""

SEQUENCE = r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])"
"""Pattern of what a terminal takes for a command: colours, movements, titles."""

_BEGUN_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|\][^\x07\x1b]*)?\Z")
_LONGEST_SEQUENCE = 64

_UP = re.compile(rb"\x1b\[\d*A")
_UP_AND_DOWN = re.compile(rb"(?:\x1b\[\d*A)+\n")
"""How one of several bars below each other is drawn anew (tqdm): this newline ends no line."""


class Lines(NamedTuple):
    """Whole lines, the newlines included, of which no piece was shown before."""

    text: bytes


class Piece(NamedTuple):
    """Part of a line, without the newline: its beginning, something between, or its end."""

    text: bytes
    first: bool
    last: bool


class State(NamedTuple):
    """What a progress bar shows now, in place of what it showed; empty: it wiped itself."""

    text: bytes
    last: bool


Cut = Lines | Piece | State


class LineCutter:
    r"""Finds the lines in one stream of bytes.

    A line ends with ``\n``; a ``\r`` right before it belongs to the ending. A ``\r`` anywhere
    else makes the line a progress bar: what stands between two of them is a state of it. Bars
    below each other, drawn by moving up and down, are one bar that shows now this, now that.
    """

    def __init__(self, *, quiet: float, bar_interval: float) -> None:
        """Make a cutter that has seen nothing.

        Args:
            quiet: seconds after which a line that does not go on is shown as far as it is.
            bar_interval: seconds between two states of a bar that are shown; the state at the
                end of its line is shown always. 0: each state that is there between two reads.
        """
        self._quiet = quiet
        self._interval = bar_interval
        self._text = b""  # of the line that has not ended: what is unshown, or a bar's state
        self._held = 0  # bytes of it that were kept back as the beginning of a character
        self._last = 0.0  # when bytes came last
        self._begun = False  # whether a piece of this line was shown
        self._bar = False  # whether this line is a progress bar
        self._state: bytes | None = None  # the state of the bar that was shown last
        self._since = 0.0  # when that was, or when the bar began

    def feed(self, data: bytes, now: float) -> list[Cut]:
        """Take the next bytes of the stream, and return what can be shown at once."""
        self._last = now
        text = self._text + data
        if b"A\n" in text:
            text = _UP_AND_DOWN.sub(b"\r", text)
        cuts: list[Cut] = []
        end = text.rfind(b"\n") + 1
        if end:
            self._held = start = 0
            if self._begun or self._bar:
                start = text.find(b"\n") + 1
                cuts += self._finish(text[: start - 1])
            if start < end:
                cuts += _whole_lines(text[start:end])
            text = text[end:]
        self._advance(text, now)
        if len(self._text) > LIMIT:
            self._bar = False  # no bar is as long as this
            cuts += self._piece()
        return cuts

    def due(self) -> float | None:
        """When ``show`` has something to do, by the clock of ``feed``; None: nothing."""
        if self._bar:
            return self._since + self._interval if self._has_new_state() else None
        return self._last + self._quiet if len(self._text) > self._held else None

    def show(self, now: float) -> list[Cut]:
        """Show what there is of a line that has not ended, due or not."""
        if self._bar:
            if not self._has_new_state():
                return []
            self._state, self._since = _state(self._text), now
            return [State(self._state, False)]
        if self._text.endswith(b"\r"):
            self._become_bar(now)  # a newline would have followed by now
            return self.show(now) if not self._interval else []
        return self._piece()

    def end(self) -> list[Cut]:
        """The stream has ended, and with it a line that has no newline."""
        text, self._text = self._text, b""
        return self._finish(text) if text or self._begun or self._bar else []

    def _advance(self, text: bytes, now: float) -> None:
        """Keep what follows the last newline; of a bar only its state now."""
        before = text.rstrip(b"\r").rfind(b"\r") + 1
        if before and not self._bar:
            self._become_bar(now)
        self._text = text[before:]

    def _become_bar(self, now: float) -> None:
        self._bar, self._begun, self._state, self._since = True, False, None, now
        self._held = 0

    def _has_new_state(self) -> bool:
        state = _state(self._text)
        return state != self._state and (bool(state) or not self._interval)

    def _finish(self, line: bytes) -> list[Cut]:
        """Show the rest of a line of which something was seen before."""
        bar, begun, shown = self._bar, self._begun, self._state
        self._bar, self._begun, self._state, self._held = False, False, None, 0
        if not bar and b"\r" not in line.rstrip(b"\r"):
            return [Piece(line, not begun, True)]
        state = _state(line)
        if self._interval and (not state or state == shown):
            return []
        return [State(state, True)]

    def _piece(self) -> list[Cut]:
        end = _whole_characters(self._text)
        if len(self._text) > LIMIT and not end:
            end = len(self._text)
        text, self._text = self._text[:end], self._text[end:]
        self._held = len(self._text)
        if not text:
            return []
        first, self._begun = not self._begun, True
        return [Piece(text, first, False)]


def _whole_characters(text: bytes) -> int:
    r"""The length of ``text`` without a ``\r``, a character or a sequence cut off at its end."""
    begun = _BEGUN_SEQUENCE.search(text, max(0, len(text) - _LONGEST_SEQUENCE))
    if begun:
        return begun.start()
    for back in range(1, min(4, len(text) + 1)):
        byte = text[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(text) - back if length > back else len(text)
        if byte < 0x80:
            break
    return len(text.rstrip(b"\r"))


def _state(line: bytes) -> bytes:
    r"""What a terminal shows of a line that went back by ``\r``."""
    for text in reversed(_UP.sub(b"", line).split(b"\r")):
        if text:
            return text if text.strip() else b""
    return b""


def _whole_lines(text: bytes) -> list[Cut]:
    r"""Lines that ended, each that is a bar reduced to what it shows last."""
    if b"\r" not in text or text.count(b"\r") == text.count(b"\r\n"):
        return [Lines(text)]
    cuts: list[Cut] = []
    plain: list[bytes] = []
    for line in text[:-1].split(b"\n"):
        if b"\r" not in line.rstrip(b"\r"):
            plain.append(line)
            continue
        if plain:
            cuts.append(Lines(b"\n".join([*plain, b""])))
            plain = []
        if state := _state(line):
            cuts.append(State(state, True))
    if plain:
        cuts.append(Lines(b"\n".join([*plain, b""])))
    return cuts
