"""The process that ranks are forked from, as the launcher sees it.

A launcher has threads (torch's store, the output) and so must not fork. It forks the nursery
while it has none, with the frameworks imported, and asks it for ranks from then on: importing
is paid once, and a restart costs milliseconds. The nursery is also the parent that outlives
the launcher: when its socket closes it ends every rank and all that they started.
"""

import contextlib
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainkit import config
from trainkit.errors import RetryableError
from trainkit.launch.entry import Entry
from trainkit.launch.messages import receive, send
from trainkit.processes.dying import DyingWatch
from trainkit.processes.kernel import adopt_orphans
from trainkit.processes.table import descendants, own_children, process_table
from trainkit.waiting import Deadline

__all__ = ["Dying", "Ended", "Nursery", "Stray"]


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that the nursery started has ended."""

    pid: int
    exitcode: int
    """As in subprocess: negative is a signal."""
    time: float
    """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Dying:
    """A process that the nursery forked has failed, and will have ended in a moment."""

    pid: int
    exitcode: int
    """As in subprocess, never 0."""


@dataclass(frozen=True, slots=True)
class Stray:
    """A process that a rank had started, and that outlived its own parent, has ended."""

    pid: int
    command: str
    exitcode: int


class Nursery:
    """Starts processes, signals them, and tells of their ends."""

    def __init__(self, control: socket.socket, pid: int, dying: DyingWatch | None = None) -> None:
        """Take over the socket to a nursery that runs; ``start`` makes one.

        Args:
            control: the socket.
            pid: of the nursery.
            dying: watches ranks that are forked; None where it cannot.
        """
        self.pid = pid
        # Ranks die with a nursery that is killed; what they started is then this process's.
        self._adopted = True
        with contextlib.suppress(OSError):
            self._adopted = adopt_orphans()
        self._others = own_children() - {pid}
        self._control = control
        self._lock = threading.Lock()
        self._events: list[Dying | Ended | Stray] = []
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._dying = dying
        if dying is not None:
            self._selector.register(dying, selectors.EVENT_READ)

    @classmethod
    def start(cls) -> "Nursery":
        """Fork it from this process; in an interpreter of its own where there are threads."""
        if len(os.listdir("/proc/self/task")) != 1:
            return cls._start_anew()
        ours, theirs = socket.socketpair()
        launcher = os.getpid()
        dying = None
        with contextlib.suppress(OSError):
            dying = DyingWatch()
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                from trainkit.launch.forking import serve

                serve(theirs, launcher, dying)
            finally:
                os._exit(1)
        theirs.close()
        return cls(ours, pid, dying)

    @classmethod
    def _start_anew(cls) -> "Nursery":
        ours, theirs = socket.socketpair()
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; from trainkit.launch.forking import main; "
            f"main({theirs.fileno()}, {os.getpid()})"
        )
        with theirs:
            arguments = [sys.executable or "/proc/self/exe", "-c", code]
            os.set_inheritable(theirs.fileno(), True)
            # Not by subprocess, whose Popen would wait for a child that is not its own business.
            pid = os.posix_spawn(arguments[0], arguments, config.environ())
        return cls(ours, pid)

    def spawn(
        self, entry: Entry, environ: Mapping[str, str], files: Mapping[str, int], *, forked: bool
    ) -> int:
        """Start a process.

        Args:
            entry: what it runs.
            environ: all of its environment.
            files: open files for ``stdout`` and ``stderr``; they stay open here.
            forked: run Python code in the fork itself; else in an interpreter of its own.

        Returns:
            Its process id.

        Raises:
            RetryableError: it cannot be started; the message says why.
        """
        slot = self._dying.slot() if forked and self._dying is not None else 0
        request = {
            "op": "start",
            "entry": entry.dump(),
            "environ": dict(environ),
            "files": list(files),
            "forked": forked,
            "slot": slot,
        }
        self._send(request, list(files.values()))
        while True:
            answer = self._receive()
            if answer["event"] == "started":
                if answer["error"]:
                    raise RetryableError(f"a rank could not be started: {answer['error']}")
                if self._dying is not None and slot:
                    self._dying.watch(slot, int(answer["pid"]))
                return int(answer["pid"])
            self._take(answer)

    def prepare(self, count: int) -> None:
        """Have ``count`` forks ready for ``spawn``; they are made while this process goes on.

        A fork of a process with torch takes 5 to 10 ms. Those that are never used end with the
        nursery.
        """
        with contextlib.suppress(OSError):
            self._send({"op": "prepare", "count": count})

    def foresee(self, count: int) -> None:
        """Make ready for starting ``count`` ranks again, once those that run have begun.

        Forks made at once would take the processor from them.
        """
        with contextlib.suppress(OSError):
            self._send({"op": "foresee", "count": count})

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to a process and all that stayed in its group; from any thread."""
        self.signal_all([pid], number)

    def signal_all(self, pids: Collection[int], number: int) -> None:
        """``signal`` for several, at once."""
        with contextlib.suppress(OSError):
            self._send({"op": "signal", "pids": list(pids), "number": int(number)})

    def remove_at_the_end(self, folder: Path) -> None:
        """Have ``folder`` removed also where this process is killed, and cannot do it itself."""
        self._send({"op": "folder", "path": str(folder)})

    def events(self, timeout: float) -> list[Dying | Ended | Stray]:
        """What has ended or is about to, waiting at most ``timeout`` seconds for the first.

        Raises:
            RetryableError: the nursery itself is gone.
        """
        deadline = Deadline(timeout)
        while not self._events:
            if not self._look(deadline.left):
                break
        while self._look(0):
            pass
        found, self._events = self._events, []
        return found

    def close(self, grace: float = 0.0) -> list[Stray]:
        """End all that is left, and the nursery; processes get ``grace`` seconds after SIGTERM.

        Returns:
            Processes that ended meanwhile without a parent of their own.
        """
        strays: list[Stray] = []
        with contextlib.suppress(OSError, RetryableError):
            self._send({"op": "close", "grace": grace})
            deadline = Deadline(grace + 10.0)
            self._stop_watching()
            while not deadline.passed and self._selector.select(deadline.left):
                answer = self._receive()
                if answer["event"] == "closed":
                    break
                self._take(answer)
        strays += [event for event in self._events if isinstance(event, Stray)]
        self._stop_watching()
        self._selector.close()
        self._control.close()
        with contextlib.suppress(ChildProcessError):
            deadline = Deadline(5.0)
            while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                if deadline.passed:
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)
                    break
                time.sleep(0.002)
        if not self._adopted:  # who goes on after this has no use for it
            with contextlib.suppress(OSError):
                adopt_orphans(False)
        return strays

    def _look(self, timeout: float) -> bool:
        """Take what has come; False where nothing does within ``timeout`` seconds."""
        ready = self._selector.select(timeout)
        for key, _ in ready:
            if key.fileobj is self._control:
                self._take(self._receive())
            elif self._dying is not None:
                self._events += [Dying(pid, code) for pid, code in self._dying.take()]
        return bool(ready)

    def _stop_watching(self) -> None:
        if self._dying is not None:
            self._selector.unregister(self._dying)
            self._dying.close()
            self._dying = None

    def _take(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "ended":
            self._events.append(Ended(event["pid"], event["exitcode"], event["time"]))
        elif event["event"] == "stray":
            self._events.append(Stray(event["pid"], event["command"], event["exitcode"]))

    def _send(self, message: Mapping[str, Any], files: list[int] | None = None) -> None:
        with self._lock:
            send(self._control, message, files or [])

    def _receive(self) -> dict[str, Any]:
        try:
            message, _ = receive(self._control)
        except OSError as reason:
            self._end_orphans()
            raise RetryableError(f"the process that starts ranks was lost ({reason})") from None
        if message is None:
            self._end_orphans()
            raise RetryableError("the process that starts ranks was killed, and all ranks with it")
        return message

    def _end_orphans(self) -> None:
        """Kill what is left of a nursery that is gone: what ranks had started."""
        deadline = Deadline(10.0)
        # Its children come over here only after its socket was closed; so it is waited for first.
        left = {self.pid}
        while left and not deadline.passed:
            table = process_table()
            here = {pid for pid, one in table.items() if one.parent == os.getpid()}
            left = here - self._others
            for pid in [*left, *(below for one in left for below in descendants(one, table))]:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            for pid in left:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.002)
