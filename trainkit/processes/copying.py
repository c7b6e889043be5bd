"""The work of the output pump: reads what processes write, and writes it where it belongs.

Everything here runs on one thread and never waits for a reader of our output; it waits for
processes to write, in ``step``.
"""

import contextlib
import errno
import os
import select
import selectors
import time
from collections.abc import Iterable, Iterator, Sequence

from trainkit import config
from trainkit.processes.forms import Form, JsonLines, Origin, Terminal, Text
from trainkit.processes.lines import Cut, LineCutter, Lines
from trainkit.processes.logs import LogFile, LogFiles
from trainkit.processes.sinks import Sink
from trainkit.processes.tails import Tail

__all__ = ["QUIET", "Copier", "Place", "Source"]

QUIET = 0.2
"""Seconds after which a line that does not go on is shown as far as it is."""

_QUIET_JSON = 2.0
"""The same for JSON, where each part is an object of its own."""

_READ = 64 * 1024
"""Bytes that are read at once: what a pipe holds."""

_LAST_READ = 4 * _READ
"""Bytes that are still taken from a pipe which is open when the pump is closed."""


class Place:
    """One of our own streams: the form that lines take there, and the way to it."""

    def __init__(self, fd: int | None, name: str, json: bool) -> None:
        """Prepare to write to ``fd``, None if that is closed; ``name`` is for messages."""
        self.name = name
        self.sink = Sink(fd)
        self.told = False  # that something was lost here
        self.watched = False  # by the selector, for the moment when it takes more
        self.form: Form = JsonLines() if json else Text()
        if not json and self.sink.fd >= 0 and os.isatty(self.sink.fd) and _moves_cursors():
            self.form = Terminal(self._columns)

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self.sink.fd).columns or 80
        except OSError:
            return 80

    def write(self, origin: Origin, cuts: Iterable[Cut], now: float) -> None:
        """Show what ``origin`` wrote; nothing here waits."""
        for cut in cuts:
            self.sink.put(self.form.write(origin, cut, now))


def _moves_cursors() -> bool:
    return config.environ().get("TERM", "") not in ("", "dumb")


class Source:
    """One stream of one process, and where its bytes go."""

    def __init__(
        self,
        fd: int,
        origin: Origin,
        *,
        place: Place | None,
        log: LogFile | None,
        tail: Tail | None,
    ) -> None:
        """Take over ``fd``, which does not block; ``place`` is None where it is not shown."""
        self.fd = fd
        self.origin = origin
        self.place = place
        self.log = log
        self.tail = tail
        self.watched = False
        self.cutter = LineCutter(
            quiet=_QUIET_JSON if place and isinstance(place.form, JsonLines) else QUIET,
            bar_interval=place.form.bar_interval if place else 0.0,
        )

    def due(self) -> float | None:
        """When something of this stream is to be shown or logged that waited for more."""
        shown = self.cutter.due()
        logged = self.log.due() if self.log is not None else None
        if shown is None or logged is None:
            return logged if shown is None else shown
        return min(shown, logged)


class Copier:
    """Copies from sources to places and log files."""

    def __init__(self, places: Sequence[Place], logs: LogFiles, wake: int) -> None:
        """Begin without a source.

        Args:
            places: ours; words of our own go to the last one.
            logs: to tell when a stream has left its file.
            wake: a descriptor that ends a wait when it can be read from.
        """
        self._places = places
        self._logs = logs
        self._wake = wake
        self._sources: list[Source] = []
        self._own = Origin("trainkit", None, "stderr", own=True)
        self._selector = selectors.DefaultSelector()
        self._selector.register(wake, selectors.EVENT_READ)

    def add(self, source: Source) -> None:
        """Copy from ``source`` until its end."""
        self._sources.append(source)
        self._watch(source, True)

    def say(self, text: str) -> None:
        """Write a line of our own, where no line of a process stands unfinished."""
        line = text.encode(errors="surrogateescape") + b"\n"
        self._places[-1].write(self._own, [Lines(line)], time.monotonic())

    @property
    def idle(self) -> bool:
        """Whether all pipes are at their end and all is written."""
        return not self._sources and not any(place.sink.pending for place in self._places)

    def step(self) -> None:
        """Wait until there is something to do, and do it once for everybody."""
        dues = [due for source in self._sources if (due := source.due()) is not None]
        timeout = max(0.0, min(dues) - time.monotonic()) if dues else None
        for key, _ in self._selector.select(timeout):
            if isinstance(key.data, Source):
                self._read(key.data)
            elif key.fd == self._wake:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 4096)
        now = time.monotonic()
        for source in self._sources:
            if (due := source.due()) is not None and due <= now:
                self._show(source, now)
        self.flush()

    def _show(self, source: Source, now: float) -> None:
        due = source.cutter.due()
        if source.place is not None and due is not None and due <= now:
            source.place.write(source.origin, source.cutter.show(now), now)
        if source.log is not None:
            with self._telling(source.log, source.origin):
                source.log.settle(now)

    def settle(self) -> None:
        """Show all that waits for more, and end the lines that stand unfinished."""
        now = time.monotonic()
        for source in self._sources:
            if source.place is not None:
                source.place.write(source.origin, source.cutter.show(now), now)
        for place in self._places:
            place.sink.put(place.form.break_line())
        self.flush()

    def flush(self) -> None:
        """Write what places take, and go on with sources whose place has room again."""
        for place in self._places:
            place.sink.flush()
            if place.sink.lost is not None:
                self._tell_loss(place)
            self._watch_place(place, place.sink.waiting)
        for source in self._sources:
            if not source.watched and not (source.place and source.place.sink.full):
                self._watch(source, True)

    def _read(self, source: Source, *, although_full: bool = False) -> int:
        """Copy once what is there; returns the number of bytes, 0 at the end or for later."""
        place = source.place
        if place is not None and place.sink.full and not although_full:
            place.sink.flush()
            if place.sink.full:
                self._watch(source, False)
                return 0
        try:
            data = os.read(source.fd, _READ)
        except BlockingIOError:
            return 0
        except OSError:  # EIO: no process has the terminal open any more
            data = b""
        if not data:
            self._end(source)
            return 0
        now = time.monotonic()
        if source.log is not None:
            with self._telling(source.log, source.origin):
                source.log.write(source, data, now)
        if source.tail is not None:
            source.tail.add(data)
        if place is not None:
            place.write(source.origin, source.cutter.feed(data, now), now)
        return len(data)

    def _end(self, source: Source) -> None:
        self._watch(source, False)
        os.close(source.fd)
        self._sources.remove(source)
        if source.place is not None:
            now = time.monotonic()
            source.place.write(source.origin, source.cutter.end(), now)
        if source.log is not None:
            with self._telling(source.log, source.origin):
                self._logs.leave(source.log, source)

    def finish(self, seconds: float) -> None:
        """Take what pipes hold now, write it while readers take it, and let go of everything.

        Args:
            seconds: after which a reader that took nothing is given up.
        """
        for source in list(self._sources):
            taken = 0
            while taken < _LAST_READ and (count := self._read(source, although_full=True)):
                taken += count
            if source in self._sources:
                self._end(source)
        self.settle()
        self._write_out(seconds)
        for place in self._places:
            if place.sink.pending:
                place.sink.lost = OSError(errno.ETIMEDOUT, f"not read for {seconds:g} s")
                self._tell_loss(place)
                self._places[-1].sink.flush()
        self.close()

    def _write_out(self, seconds: float) -> None:
        last = time.monotonic()
        before = -1
        while (now := time.monotonic()) - last < seconds:
            self.flush()
            waiting = [place.sink for place in self._places if place.sink.waiting]
            if not waiting:
                return
            pending = sum(sink.pending for sink in waiting)
            if pending != before:
                before, last = pending, now
            poll = select.poll()
            for sink in waiting:
                poll.register(sink.fd, select.POLLOUT)
            poll.poll(100)

    def close(self) -> None:
        """Let go of everything; processes that still write get SIGPIPE."""
        for source in list(self._sources):
            self._end(source)
        for place in self._places:
            self._watch_place(place, False)
            place.sink.close()
        self._selector.close()

    def _watch(self, source: Source, on: bool) -> None:
        if on and not source.watched:
            self._selector.register(source.fd, selectors.EVENT_READ, source)
        elif source.watched and not on:
            self._selector.unregister(source.fd)
        source.watched = on

    def _watch_place(self, place: Place, on: bool) -> None:
        if on and not place.watched:
            self._selector.register(place.sink.fd, selectors.EVENT_WRITE, place)
        elif place.watched and not on:
            self._selector.unregister(place.sink.fd)
        place.watched = on

    def _tell_loss(self, place: Place) -> None:
        reason, place.sink.lost = place.sink.lost, None
        if not place.told and place is not self._places[-1]:
            self.say(
                f"trainkit: output is lost: {place.name} takes no more "
                f"({reason and reason.strerror}). The processes go on, and so do log files."
            )
        place.told = True

    @contextlib.contextmanager
    def _telling(self, log: LogFile, origin: Origin) -> Iterator[None]:
        """Say once that a log file does not take what it should; the processes go on."""
        try:
            yield
        except OSError as reason:
            if not log.failed:
                log.failed = True
                self.say(
                    f"trainkit: output of {origin.label} is missing in the log file "
                    f"{str(log.path)!r}: {reason.strerror or reason}. The processes go on."
                )
