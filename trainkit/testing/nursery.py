"""The process that ranks are forked from: ``python -m trainkit.testing FD PRELOAD…``.

It imports what ranks will need, once, and then forks them on demand. It must stay fit for
forking: one native thread, no CUDA, one loop. It ends, with everything below it, when the
process that started it closes the socket or dies. Messages are JSON, one a line.
"""

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from trainkit.processes.kernel import adopt_orphans
from trainkit.processes.program import spare_finalizers
from trainkit.processes.table import descendants, own_children, process_table
from trainkit.testing.family import Family, kill
from trainkit.testing.rank import become_rank
from trainkit.waiting import Deadline

__all__ = ["main"]

_IDLE_PAUSE = 1.0
"""Seconds between two looks at whether the parent lives, should its socket stay open."""


def main(arguments: list[str]) -> int:
    """Preload, say so, and serve until the parent is gone.

    Args:
        arguments: the socket's file descriptor, then the modules to preload.
    """
    control = socket.socket(fileno=int(arguments[0]))
    parent = os.getppid()
    preloaded = _preload(arguments[1:])
    threads = _threads()
    if len(threads) > 1:
        why = f"preloading {arguments[1:]} started threads ({', '.join(threads)})"
        _send(control, {"event": "unfit", "why": why + ": a fork would copy only one of them"})
        return 1
    spare_finalizers()
    gc.collect()
    gc.freeze()  # later collections leave these objects, and the pages they share, alone
    adopt_orphans()
    _send(control, {"event": "ready", "pid": os.getpid(), "preloaded": preloaded})
    Nursery(control, parent).serve()
    return 0


def _preload(names: list[str]) -> list[str]:
    loaded = []
    for name in names:
        # A framework that is not installed is the rank's to miss, with its own message.
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
            loaded.append(name)
    return loaded


def _threads() -> list[str]:
    return [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]


def _send(control: socket.socket, message: dict[str, Any]) -> None:
    control.sendall(json.dumps(message).encode() + b"\n")


class Nursery:
    """Forks ranks, reaps them, ends them at their deadline, and says so."""

    def __init__(self, control: socket.socket, parent: int) -> None:
        """Take over signals and the socket.

        Args:
            control: where requests come from and events go to.
            parent: the process that asks; when it is no longer the parent, all ends.
        """
        self._control, self._parent, self._pid = control, parent, os.getpid()
        self._families: dict[int, Family] = {}
        self._received = b""
        self._open = True
        self._forks = 0
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(control, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, so that select wakes up
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Answer requests until the parent is gone, then end every rank."""
        try:
            while self._open and os.getppid() == self._parent:
                for key, _ in self._selector.select(self._pause()):
                    if key.fileobj is self._control:
                        self._receive()
                    else:
                        os.read(self._woken, 4096)
                self._reap()
                for run, family in list(self._families.items()):
                    self._look_after(run, family)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the parent died between two messages
        self._end_all()

    def _pause(self) -> float:
        moments = [family.next_moment() for family in self._families.values()]
        return max(0.0, min([_IDLE_PAUSE, *(moment - time.monotonic() for moment in moments)]))

    def _receive(self) -> None:
        data = self._control.recv(1 << 16)
        if not data:
            self._open = False
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            getattr(self, "_on_" + request.pop("op"))(**request)

    def _on_start(self, run: int, folder: str, n: int, timeout: float) -> None:
        family = self._families[run] = Family(Path(folder), timeout)
        sys.stdout.flush()
        sys.stderr.flush()
        error = None
        for number in range(n):
            try:
                pid = os.fork()
            except OSError as reason:
                error = f"fork of rank {number} failed: {reason}"
                family.kill()
                break
            if pid == 0:
                try:
                    self._close_own_files()
                    become_rank(family.folder, number, self._pid)
                finally:
                    os._exit(1)
            family.add(number, pid)
            self._forks += 1
        pids = [child.pid for child in family.children]
        _send(self._control, {"event": "started", "run": run, "pids": pids, "error": error})

    def _close_own_files(self) -> None:
        # First: a signal that comes now must not be written into a file that reuses the number.
        signal.set_wakeup_fd(-1)
        self._selector.close()
        self._control.close()
        os.close(self._woken)
        os.close(self._wake)

    def _on_signal(self, run: int, rank: int, number: int, group: bool) -> None:
        delivered = self._families[run].signal(rank, number, group=group)
        _send(self._control, {"event": "signalled", "run": run, "delivered": delivered})

    def _on_end(self, run: int) -> None:
        self._adopt(self._families[run])
        self._families[run].close()

    def _on_status(self) -> None:
        status = {
            "event": "status",
            "pid": os.getpid(),
            "forks": self._forks,
            "runs": len(self._families),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": _threads(),
            "modules": len(sys.modules),
        }
        _send(self._control, status)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for run, family in self._families.items():
                ended = family.reaped(pid, status)
                if ended is not None:
                    self._adopt(family)
                    _send(self._control, {"event": "ended", "run": run, **ended})

    def _adopt(self, family: Family) -> None:
        """Give processes whose parent died, and that became ours, to the run they are from."""
        known = {pid for other in self._families.values() for pid in other.pids()}
        unknown = own_children() - known
        table = process_table() if unknown else {}
        for info in (table[pid] for pid in unknown if pid in table):
            # One that left its rank's session tells nothing: it counts with the rank that
            # ended just now. That can be wrong only where runs overlap, and both are ours.
            owners = (f for f in self._families.values() if f.is_session(info.session))
            next(owners, family).adopt(info.pid)

    def _look_after(self, run: int, family: Family) -> None:
        family.check_deadline()
        if family.finished():
            del self._families[run]
            _send(self._control, {"event": "closed", "run": run})

    def _end_all(self) -> None:
        deadline = Deadline(10.0)
        while not deadline.passed:
            living = [info for info in descendants(self._pid).values() if not info.zombie]
            for info in living:
                kill(info.pid)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if not living:
                break
            self._selector.select(0.01)
        for family in self._families.values():
            shutil.rmtree(family.folder, ignore_errors=True)
