"""The forms in which the lines of many processes appear together: text, terminal, JSON.

A form turns the cuts of all streams that go to one place into the bytes to write there. It
remembers whose line stands unfinished at the end, so that no other is written into it.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Literal, Protocol

from trainkit.processes.lines import SEQUENCE, Cut, Lines, Piece, State

__all__ = ["Form", "JsonLines", "Origin", "Terminal", "Text"]

_encode = json.JSONEncoder(ensure_ascii=False).encode

_OWNER_IS_SILENT = 1.0
"""Seconds after which the last line of a terminal may go from one process to another."""

_SEQUENCE = re.compile(SEQUENCE)
_ERASE_ROW = b"\r\x1b[K"
_LONGEST_ROW = 4096


@dataclass(frozen=True, eq=False)
class Origin:
    """Which process and which of its streams a line comes from."""

    label: str
    rank: int | None
    stream: Literal["stdout", "stderr"]
    own: bool = False
    """Whether it is a word of ours, which has no prefix."""

    @cached_property
    def prefix(self) -> bytes:
        """What stands before a line; nothing where there is no label."""
        return self._brackets(b" ")

    @cached_property
    def more(self) -> bytes:
        """What stands before the rest of a line that was interrupted."""
        return self._brackets(b"+ ")

    def _brackets(self, end: bytes) -> bytes:
        if self.own or not self.label:
            return b""
        return f"[{self.label}]".encode(errors="surrogateescape") + end

    @cached_property
    def fields(self) -> str:
        """What is the same in each of its JSON objects."""
        label = self.label.encode(errors="surrogateescape").decode(errors="replace")
        return (
            f'"rank": {_encode(self.rank)}, "label": {_encode(label)}, '
            f'"stream": {_encode(self.stream)}, "message": '
        )


class Form(Protocol):
    """Turns cuts into bytes; one for each place that is written to."""

    bar_interval: float
    """Seconds between two states of a bar, see ``LineCutter``."""

    def write(self, origin: Origin, cut: Cut, now: float) -> bytes:
        """The bytes by which ``cut`` appears; ``now`` is the monotonic clock."""
        ...

    def break_line(self) -> bytes:
        """The bytes that end a line which stands unfinished, so that others can write."""
        ...


class Text:
    """A prefix before each line, for pipes and files."""

    bar_interval = 10.0

    def __init__(self) -> None:
        """Begin at the start of a line."""
        self._owner: Origin | None = None

    def write(self, origin: Origin, cut: Cut, now: float) -> bytes:
        """See ``Form``. A state of a bar appears as a line."""
        del now
        if isinstance(cut, Piece):
            return self._piece(origin, cut)
        if isinstance(cut, State):
            return self.break_line() + (origin.prefix + cut.text + b"\n" if cut.text else b"")
        return self.break_line() + prefixed(origin, cut)

    def _piece(self, origin: Origin, piece: Piece) -> bytes:
        if self._owner is origin and not piece.first:
            text = piece.text
        elif not piece.first and not piece.text.strip(b"\r"):
            return b""  # nothing but the end of a line that was broken already
        else:
            text = self.break_line() + (origin.prefix if piece.first else origin.more) + piece.text
        self._owner = None if piece.last else origin
        return text + b"\n" if piece.last else text

    def break_line(self) -> bytes:
        """See ``Form``."""
        owner, self._owner = self._owner, None
        return b"\n" if owner is not None else b""


def prefixed(origin: Origin, lines: Lines) -> bytes:
    """Whole lines, each with the prefix of its origin."""
    if not origin.prefix:
        return lines.text
    body = lines.text[:-1].replace(b"\n", b"\n" + origin.prefix)
    return b"".join((origin.prefix, body, b"\n"))


class Terminal:
    """A prefix before each line; the last row moves in place.

    A bar or an unfinished line of one process has the last row, and lines of others appear
    above it. While that process writes, bars of others are not shown until they end.
    """

    bar_interval = 0.0

    def __init__(self, columns: Callable[[], int]) -> None:
        """Begin at the start of a row; ``columns`` tells how many the terminal has now."""
        self._columns = columns
        self._owner: Origin | None = None  # of the last row, where that is not empty
        self._row = b""  # what it shows, the prefix included
        self._is_bar = False
        self._since = 0.0  # when the owner wrote last

    def write(self, origin: Origin, cut: Cut, now: float) -> bytes:
        """See ``Form``."""
        if isinstance(cut, Lines):
            return self._above(prefixed(origin, cut))
        if isinstance(cut, State):
            return self._bar(origin, cut, now)
        return self._piece(origin, cut, now)

    def break_line(self) -> bytes:
        """See ``Form``."""
        owner, self._owner, self._row = self._owner, None, b""
        return b"\n" if owner is not None else b""

    def _above(self, text: bytes) -> bytes:
        """Whole lines, written above the last row if that can be moved."""
        if self._owner is None:
            return text
        if not self._movable():
            return self.break_line() + text
        return _ERASE_ROW + text + self._row

    def _piece(self, origin: Origin, piece: Piece, now: float) -> bytes:
        start, text = b"", piece.text
        if self._owner is not origin or self._is_bar or piece.first:
            if not piece.first and not text.strip(b"\r"):
                return b""  # nothing but the end of a line that was broken already
            text = (origin.prefix if piece.first else origin.more) + text
            if piece.last and self._owner is not origin:
                return self._above(text + b"\n")
            start = self._give_up_row()
        if piece.last:
            self._owner, self._row = None, b""
            return start + text + b"\n"
        # A row that is longer than any terminal cannot be moved; no need to know all of it.
        self._row = (self._row + text)[: _LONGEST_ROW + 1]
        self._owner, self._is_bar, self._since = origin, False, now
        return start + text

    def _bar(self, origin: Origin, state: State, now: float) -> bytes:
        row = origin.prefix + state.text if state.text else b""
        if state.last:
            if self._owner is not origin:
                return self._above(row + b"\n") if row else b""
            self._owner, self._row = None, b""
            return _ERASE_ROW + (row + b"\n" if row else b"")
        start = b""
        if self._owner not in (None, origin):
            if now - self._since < _OWNER_IS_SILENT:
                return b""
            start = self._give_up_row()
        self._owner, self._row = (origin if row else None), fitted(row, self._columns() - 1)
        self._is_bar, self._since = True, now
        return start + _ERASE_ROW + self._row

    def _give_up_row(self) -> bytes:
        """Leave the last row: a bar that goes on elsewhere vanishes, other text stays."""
        if self._owner is not None and self._is_bar:
            self._owner, self._row = None, b""
            return _ERASE_ROW
        return self.break_line()

    def _movable(self) -> bool:
        """Whether the last row can be wiped and written again: it is one row, and plain."""
        if len(self._row) > _LONGEST_ROW:
            return False
        plain = _SEQUENCE.sub("", self._row.decode(errors="replace"))
        return plain.isprintable() and _width(plain) < self._columns()


def fitted(row: bytes, columns: int) -> bytes:
    """``row``, cut to so many columns of a terminal; sequences take none."""
    text = row.decode(errors="surrogateescape")
    if len(text) <= columns and text.isascii():
        return row
    left, at, sequences = columns, 0, False
    while at < len(text):
        sequence = _SEQUENCE.match(text, at)
        if sequence:
            at, sequences = sequence.end(), True
            continue
        left -= _width(text[at])
        if left < 0:
            reset = "\x1b[0m" if sequences else ""
            return (text[:at] + reset).encode(errors="surrogateescape")
        at += 1
    return row


def _width(text: str) -> int:
    """Columns that a terminal needs for printable characters."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1
        for one in text
    )


class JsonLines:
    """One JSON object a line; bytes that are not UTF-8 become U+FFFD."""

    bar_interval = 10.0

    def write(self, origin: Origin, cut: Cut, now: float) -> bytes:
        """See ``Form``. What a line lacks of its end follows in its stream's next object."""
        del now
        clock = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        head = f'{{"time": "{clock}", {origin.fields}'
        if isinstance(cut, Lines):
            lines = cut.text.decode(errors="replace")[:-1].split("\n")
            tail = "}\n"
            return "".join([head + _encode(line.rstrip("\r")) + tail for line in lines]).encode()
        if isinstance(cut, State) and not cut.text:
            return b""
        text = cut.text.decode(errors="replace")
        partial = isinstance(cut, Piece) and not cut.last
        tail = ', "partial": true}\n' if partial else "}\n"
        return (head + _encode(text if partial else text.rstrip("\r")) + tail).encode()

    def break_line(self) -> bytes:
        """See ``Form``: an object is always whole."""
        return b""
