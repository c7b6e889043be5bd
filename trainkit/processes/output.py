"""Output of several processes, line by line into one: nobody's lines are torn by another's."""

import contextlib
import json
import os
import selectors
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from trainkit.processes.lines import Lines

__all__ = ["OutputPump"]

_READ = 256 * 1024
_LOOK = 0.1
"""Seconds between two looks at lines that have no end yet."""
_TAIL_LINES, _TAIL_BYTES = 50, 2000


class OutputPump:
    """Copies what processes write to pipes to stdout and stderr of this process, and to files.

    One thread reads and writes. Where our own stdout is not read, it waits, and the processes
    with it; where it is closed, it goes on reading for the files. Bytes that are no UTF-8 stay
    as they are; in JSON they become surrogate escapes (``\\udcff``).
    """

    def __init__(self, *, json: bool = False, out: int = 1, err: int = 2) -> None:
        """Begin; the thread starts with the first pipe.

        Args:
            json: write one JSON object a line: time, rank, label, stream, message, and
                ``partial`` for a piece of a line of more than 64 KiB.
            out: file descriptor for what processes write to stdout.
            err: the same for stderr.
        """
        self._json = json
        self._sinks = {"stdout": _Sink(out), "stderr": _Sink(err)}
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._tails: dict[int, deque[bytes]] = {}
        self._new: deque[_Source] = deque()
        self._open = 0
        self._changed = threading.Condition()
        self._over = False
        self._thread: threading.Thread | None = None

    def add(
        self,
        fd: int,
        *,
        stream: Literal["stdout", "stderr"],
        label: str,
        rank: int | None,
        log: Path | None = None,
        shown: bool = True,
    ) -> None:
        """Copy from the pipe ``fd`` until its end, and close it then.

        Args:
            fd: to read from.
            stream: of the process that writes to it.
            label: begins each line, in brackets; nothing does where it is empty.
            rank: of that process.
            log: file to which the bytes are appended as they come.
            shown: whether they go to our own stdout or stderr as well.
        """
        sink = self._sinks[stream]
        lines = Lines(terminal=sink.terminal, parts=not self._json)
        file = None
        if log is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            file = os.open(log, flags, 0o644)
        source = _Source(fd, stream, label, rank, file, shown, sink, lines)
        with self._changed:
            self._open += 1
            self._new.append(source)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="trainkit-output", daemon=True
                )
                self._thread.start()
        os.write(self._wake, b"x")

    def tail(self, rank: int, lines: int = 20) -> list[str]:
        """The last lines that a rank has written to stderr."""
        kept = self._tails.get(rank)
        return (
            [] if kept is None else [line.decode(errors="replace") for line in list(kept)[-lines:]]
        )

    def drain(self, timeout: float) -> None:
        """Wait until all pipes are at their end and copied, at most ``timeout`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._open == 0, timeout)

    def close(self) -> None:
        """Stop, and give up what has not been copied."""
        self._over = True
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, b"x")
        if self._thread is None:
            self._release()
            return
        self._thread.join(1.0)  # it may hang in a write that nobody reads

    def _run(self) -> None:
        sources: list[_Source] = []
        while not self._over:
            for key, _ in self._selector.select(self._pause(sources)):
                if key.data is None:
                    os.read(self._woken, 4096)
                    self._register(sources)
                elif not self._read(key.data):
                    sources.remove(key.data)
                    self._end(key.data)
            self._show_parts(sources)
        for source in sources:
            self._end(source)
        self._release()

    def _release(self) -> None:
        self._selector.close()
        os.close(self._woken)
        os.close(self._wake)

    def _pause(self, sources: list["_Source"]) -> float | None:
        return _LOOK if any(source.lines.waits for source in sources) else None

    def _register(self, sources: list["_Source"]) -> None:
        while self._new:
            source = self._new.popleft()
            sources.append(source)
            self._selector.register(source.fd, selectors.EVENT_READ, source)

    def _read(self, source: "_Source") -> bool:
        try:
            data = os.read(source.fd, _READ)
        except OSError:  # how a terminal ends
            data = b""
        if not data:
            return False
        if source.log is not None:
            with contextlib.suppress(OSError):  # a full disk must not end the ranks
                _write_all(source.log, data)
        if source.stream == "stderr" and source.rank is not None:
            self._remember(source, data)
        if source.shown:
            for piece, ends in source.lines.take(data):
                self._show(source, piece, ends=ends)
        return True

    def _remember(self, source: "_Source", data: bytes) -> None:
        kept = self._tails.setdefault(source.rank or 0, deque(maxlen=_TAIL_LINES))
        *whole, rest = (source.unfinished + data).split(b"\n")
        kept.extend(line[-_TAIL_BYTES:] for line in whole)
        source.unfinished = rest[-_TAIL_BYTES:]

    def _show_parts(self, sources: list["_Source"]) -> None:
        now = time.monotonic()
        for source in sources:
            due = source.lines.due(now)
            if due is not None:
                self._show(source, due[0], ends=due[1])

    def _end(self, source: "_Source") -> None:
        last = source.lines.end()
        if last is not None:
            self._show(source, last[0], ends=True)
        elif source.sink.holder is source:
            source.sink.write(b"\n")
            source.sink.holder = None
        if source.unfinished:
            self._tails[source.rank or 0].append(source.unfinished)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(source.fd)
        os.close(source.fd)
        if source.log is not None:
            os.close(source.log)
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def _show(self, source: "_Source", piece: bytes, *, ends: bool) -> None:
        if self._json:
            source.sink.write(_as_json(source, piece, ends=ends))
            return
        sink = source.sink
        begins = sink.holder is not source
        text = b"\n" if begins and sink.holder is not None else b""
        returns = piece.startswith(b"\r")
        if returns:
            text, piece = text + b"\r", piece[1:]
        if begins or returns:
            text += source.prefix
        text += piece + (b"\x1b[K" if returns else b"") + (b"\n" if ends else b"")
        sink.holder = None if ends else source
        sink.write(text)


@dataclass(eq=False, slots=True)
class _Sink:
    """One of our own streams, and whose line it is in the middle of."""

    fd: int
    holder: "_Source | None" = None
    closed: bool = False

    @property
    def terminal(self) -> bool:
        return os.isatty(self.fd)

    def write(self, data: bytes) -> None:
        if self.closed:
            return
        try:
            _write_all(self.fd, data)
        except OSError:
            self.closed = True  # nobody listens any more: files are written all the same


@dataclass(eq=False, slots=True)
class _Source:
    """One pipe."""

    fd: int
    stream: str
    label: str
    rank: int | None
    log: int | None
    shown: bool
    sink: _Sink
    lines: Lines
    unfinished: bytes = b""
    prefix: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.prefix = f"[{self.label}] ".encode() if self.label else b""


def _as_json(source: _Source, piece: bytes, *, ends: bool) -> bytes:
    values = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "rank": source.rank,
        "label": source.label,
        "stream": source.stream,
        "message": piece.decode("utf-8", "surrogateescape"),
    }
    if not ends:
        values["partial"] = True
    return json.dumps(values).encode() + b"\n"


def _write_all(fd: int, data: bytes) -> None:
    for part in _parts(memoryview(data)):
        while part:
            try:
                part = part[os.write(fd, part) :]
            except BlockingIOError:  # somebody made our stdout non-blocking
                time.sleep(0.005)


def _parts(data: memoryview) -> Iterator[memoryview]:
    for begin in range(0, len(data), _READ):
        yield data[begin : begin + _READ]
