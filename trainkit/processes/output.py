"""Copies what processes write, line by line, to this process's own output and to files."""

import contextlib
import os
import signal
import stat
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from trainkit.processes.copying import QUIET, Copier, Place, Source
from trainkit.processes.forms import Origin
from trainkit.processes.logs import LogFile, LogFiles
from trainkit.processes.tails import Tail

__all__ = ["OutputPump"]

_LEAVE = 3.0
"""Seconds after which ``close`` gives up a reader of our output that takes nothing."""

_LEAVE_AT_MOST = 15.0
"""Seconds after which it gives up the thread, which a disk or a terminal may hold."""

_SETTLE = 0.5
"""Seconds that ``drain`` waits at its end for unfinished lines to be written."""


class OutputPump:
    """Copies what processes write to pipes, line by line, to stdout and stderr, and to files.

    One thread does it, from the first ``add`` to ``close``. While a reader of our output is
    slow, processes whose output it shows wait, as they would if they wrote to it themselves;
    once it is gone, their output is read and discarded. ``docs/launch-output.md`` says how
    lines of several processes are put together.
    """

    def __init__(self, *, json: bool = False, out: int = 1, err: int = 2) -> None:
        """Prepare to write to the descriptors ``out`` and ``err``, which stay as they are.

        Args:
            json: write one JSON object a line in place of a prefix.
            out: where goes what processes write to their stdout. May be closed.
            err: where goes what they write to their stderr. May be closed, or the same.
        """
        # Asked before anything is opened, which would take the number of a closed one.
        same, out_open, err_open = _same(out, err), _is_open(out), _is_open(err)
        self._out = Place(out if out_open else None, "stdout", json)
        self._err = self._out if same else Place(err if err_open else None, "stderr", json)
        places = [self._out] if self._err is self._out else [self._out, self._err]
        self._logs = LogFiles(QUIET)
        self._tails: dict[int | None, Tail] = {}
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._copier = Copier(places, self._logs, self._wake_read)
        self._lock = threading.Lock()
        self._orders: list[Callable[[], None]] = []
        self._drains: list[threading.Event] = []  # the thread's own
        self._thread: threading.Thread | None = None
        self._closing = False  # or failed: nothing more is copied
        self._closed = False

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
        """Copy what comes out of ``fd`` until its end, and close it then.

        A stderr starts the rank's ``tail`` anew: it belongs to another process now.

        Args:
            fd: the end of a pipe or pseudo-terminal to read from. It belongs to the pump from
                now on, even if this raises.
            stream: whether it is a stdout or a stderr.
            label: stands in brackets before each line; nothing does where it is empty.
            rank: the global rank of the process; None where it has none.
            log: a file to which the bytes are appended as they are. Streams may share one.
            shown: False: only to the file, and for ``tail``.

        Raises:
            NoPermissionError: ``log`` may not be written.
            EnvironmentFaultError: ``log`` cannot be written for another reason.
            ValueError: ``fd`` is no pipe, or the pump is closed.
        """
        file: LogFile | None = None
        try:
            if self._closing:
                raise ValueError("this OutputPump is closed: make a new one for more processes")
            if stat.S_ISREG(os.fstat(fd).st_mode):
                raise ValueError(f"descriptor {fd} is a file; expected a pipe or a terminal")
            os.set_blocking(fd, False)
            file = self._logs.open(log) if log is not None else None
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(fd)
            raise
        tail = None
        if stream == "stderr":
            tail = self._tails[rank] = Tail()
        place = self._out if stream == "stdout" else self._err
        origin = Origin(label, rank, stream)
        source = Source(fd, origin, place=place if shown else None, log=file, tail=tail)
        self._order(lambda: self._copier.add(source))

    def say(self, text: str) -> None:
        """Write a line of our own to stderr, and not into an unfinished line of a process."""
        self._order(lambda: self._copier.say(text))

    def tail(self, rank: int | None, lines: int = 20) -> list[str]:
        """The last lines of the newest stderr of ``rank``, oldest first, without colours.

        Long lines are cut; nothing is there of a rank that was never added. What is still in
        the pipe is not seen: ``drain`` first, if the process has ended.
        """
        tail = self._tails.get(rank)
        return tail.lines(lines) if tail is not None else []

    def drain(self, timeout: float) -> None:
        """Wait until all pipes are at their end and all is written.

        Whatever there is of unfinished lines is written then, and also where ``timeout`` seconds
        pass before, since a pipe that a left-over process holds has no end.
        """
        if self._thread is None or self._closing:
            return
        done, settled = threading.Event(), threading.Event()
        self._order(lambda: self._drains.append(done))
        if done.wait(timeout):
            return

        def settle() -> None:
            if done in self._drains:
                self._drains.remove(done)
            self._copier.settle()
            settled.set()

        self._order(settle)
        settled.wait(_SETTLE)

    def close(self) -> None:
        """Write what is there, and end the thread; processes that still write get SIGPIPE.

        Takes seconds at most: what a blocked reader does not take by then is lost.
        """
        if self._closed:
            return
        self._closed = self._closing = True
        if self._thread is None:
            self._copier.close()
        else:
            self._wake()
            self._thread.join(_LEAVE_AT_MOST)
            if self._thread.is_alive():
                return  # it is a daemon, and its descriptors are in use
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _order(self, order: Callable[[], None]) -> None:
        """Have the thread do something, in order."""
        with self._lock:
            self._orders.append(order)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="output", daemon=True)
                self._thread.start()
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it will wake up anyway
            os.write(self._wake_write, b"\0")

    def _work(self) -> None:
        # Signals are for the main thread, and a SIGPIPE or SIGTTOU of ours is an error to handle.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            while not self._closing:
                self._copier.step()
                self._obey()
            self._obey()
            self._copier.finish(_LEAVE)
        except BaseException:
            # A bug. Processes must not wait for ever for a reader who is gone.
            traceback.print_exc(file=sys.__stderr__)
            self._closing = True
            self._copier.close()
        finally:
            for done in self._drains:
                done.set()

    def _obey(self) -> None:
        with self._lock:
            orders, self._orders = self._orders, []
        for order in orders:
            order()
        self._copier.flush()
        if self._drains and self._copier.idle:
            for done in self._drains:
                done.set()
            self._drains.clear()


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _same(out: int, err: int) -> bool:
    """Whether both lead to the same terminal, pipe or file."""
    try:
        return os.path.sameopenfile(out, err)
    except OSError:
        return False
