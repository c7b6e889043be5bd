"""The nursery's own loop: fork ranks, reap them, and end them with the launcher.

It must stay fit for forking: one native thread, no CUDA, no open sessions.
"""

import contextlib
import gc
import os
import selectors
import shutil
import signal
import socket
import time
from typing import Any, NoReturn

from trainkit.launch.messages import receive, send
from trainkit.launch.spares import Spares
from trainkit.processes.dying import DyingWatch
from trainkit.processes.kernel import adopt_orphans
from trainkit.processes.program import spare_finalizers
from trainkit.processes.table import ProcessInfo, descendants, process_table
from trainkit.waiting import Deadline

__all__ = ["main", "serve"]

_IGNORED = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGPIPE),
)
_HEARTBEAT = 1.0
"""Seconds between two looks at whether the launcher lives, should its socket stay open."""
_BEGIN = 1.0
"""Seconds after the last start when ranks have begun, and what is next may have the processor."""


def main(descriptor: int, launcher: int) -> NoReturn:
    """The nursery in an interpreter of its own."""
    os.set_inheritable(descriptor, False)
    serve(socket.socket(fileno=descriptor), launcher)


def serve(control: socket.socket, launcher: int, dying: DyingWatch | None = None) -> NoReturn:
    """Serve the launcher at the other end until it is gone; then end everything below."""
    os.setsid()  # a terminal's Ctrl-C is the launcher's, which passes it on
    spare_finalizers()
    gc.freeze()  # collections in ranks leave these objects, and the pages they share, alone
    for number in signal.valid_signals():
        if number in _IGNORED or callable(signal.getsignal(number)):  # the launcher's notices
            signal.signal(number, signal.SIG_IGN)
    adopt_orphans()
    server = _Server(control, launcher, dying)
    try:
        server.loop()
    finally:
        server.end_all()
        os._exit(0)


class _Over(BaseException):
    """The launcher needs this process no more, or is gone."""


class _Server:
    def __init__(self, control: socket.socket, launcher: int, dying: DyingWatch | None) -> None:
        self._control, self._launcher, self._pid = control, launcher, os.getpid()
        self._children: set[int] = set()
        self._spares = Spares(self._close_own_files, dying)
        self._folders: list[str] = []
        self._killed: set[int] = set()  # by us, so that their ends are nobody's fault
        self._foreseen, self._foresee_at = 0, 0.0  # how many, and when to make ready for them
        self._selector = selectors.DefaultSelector()
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(control, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # a handler, so that select wakes up
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)

    def loop(self) -> None:
        with contextlib.suppress(_Over):
            while os.getppid() == self._launcher:
                pause = _HEARTBEAT
                if self._foreseen:
                    pause = min(pause, max(0.0, self._foresee_at - time.monotonic()))
                self._attend(pause)
                if self._foreseen and time.monotonic() >= self._foresee_at:
                    self._spares.fork(self._foreseen)
                    self._foreseen = 0

    def _attend(self, pause: float = 0.0) -> None:
        """Do what is asked, and tell of ends."""
        for key, _ in self._selector.select(pause):
            if key.fileobj is self._woken:
                os.read(self._woken, 4096)
                continue
            try:
                message, files = receive(self._control)
            except OSError:
                raise _Over from None
            if message is None:
                raise _Over
            if not self._answer(message, files):
                raise _Over
        if not self._reap():
            raise _Over

    def _answer(self, message: dict[str, Any], files: list[int]) -> bool:
        """Do what is asked; False at the end."""
        match message["op"]:
            case "start":
                self._foreseen = 0
                self._start(message, files)
            case "foresee":
                self._foreseen = message["count"]
                self._foresee_at = time.monotonic() + _BEGIN
            case "prepare":
                self._spares.fork(message["count"])
            case "signal":
                living = [pid for pid in message["pids"] if pid in self._children]
                self._signal(living, message["number"])
            case "folder":
                self._folders.append(message["path"])
            case "close":
                # The launcher lives, reads there how ranks ended, and removes them itself.
                self._folders.clear()
                self._close(message["grace"])
                return False
        return True

    def _start(self, message: dict[str, Any], files: list[int]) -> None:
        error = ""
        pid = self._spares.employ(message, files) if message["forked"] else 0
        if not pid:
            # Ignored as they are here, signals that come before it is a rank would be lost to it.
            signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
            try:
                pid = os.fork()
            except OSError as reason:
                error = str(reason)
            if pid == 0 and not error:
                try:
                    self._spares.close_files()
                    self._spares.become(message, files, self._pid)
                finally:
                    os._exit(1)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
        for descriptor in files:
            os.close(descriptor)
        if pid:
            self._children.add(pid)
        send(self._control, {"event": "started", "pid": pid, "error": error}, [])

    def _close_own_files(self) -> None:
        # First: a signal that comes now must not be written into a file that reuses the number.
        signal.set_wakeup_fd(-1)
        self._selector.close()
        self._control.close()
        os.close(self._woken)
        os.close(self._wake)

    def _signal(self, pids: list[int], number: int) -> None:
        below: dict[int, ProcessInfo] = {}
        if number == signal.SIGKILL:
            table = process_table()
            for pid in pids:
                below |= descendants(pid, table)
        self._killed |= below.keys()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                try:
                    os.killpg(pid, number)
                except ProcessLookupError:
                    os.kill(pid, number)  # before its setsid it has no group of its own
        for info in below.values():  # those with groups of their own too
            _kill(info, number)

    def _reap(self) -> bool:
        """Tell of children that ended; False when nobody listens any more."""
        try:
            while True:
                try:
                    found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                except ChildProcessError:
                    return True
                if found is None:
                    return True
                pid = found.si_pid
                stray = None
                if pid not in self._children:
                    stray = process_table().get(pid)
                _, status = os.waitpid(pid, 0)
                code = os.waitstatus_to_exitcode(status)
                if self._spares.forget(pid):
                    continue
                if pid in self._children:
                    self._children.discard(pid)
                    event = {"event": "ended", "pid": pid, "exitcode": code, "time": time.time()}
                elif pid in self._killed:
                    self._killed.discard(pid)
                    continue
                else:
                    command = stray.name if stray is not None else ""
                    event = {"event": "stray", "pid": pid, "command": command, "exitcode": code}
                send(self._control, event, [])
        except OSError:
            return False

    def _close(self, grace: float) -> None:
        """Let what is left end: SIGTERM, and after ``grace`` seconds SIGKILL."""
        self._killed |= self._spares.dismiss()
        deadline = Deadline(grace)
        asked: set[int] = set()
        while not deadline.passed:
            living = [info for info in descendants(self._pid).values() if not info.zombie]
            for info in living:
                if info.pid not in asked:
                    asked.add(info.pid)
                    _kill(info, signal.SIGTERM)
            self._reap()
            if not living:
                break
            self._selector.select(0.01)
        self.end_all()
        with contextlib.suppress(OSError):
            send(self._control, {"event": "closed"}, [])

    def end_all(self) -> None:
        """Kill all that descends from this process, until nothing is left, nor its files."""
        self._kill_all()
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _kill_all(self) -> None:
        deadline = Deadline(10.0)
        while not deadline.passed:
            living = [info for info in descendants(self._pid).values() if not info.zombie]
            for info in living:
                _kill(info, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if not living:
                return
            time.sleep(0.002)


def _kill(info: ProcessInfo, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(info.pid, number)
