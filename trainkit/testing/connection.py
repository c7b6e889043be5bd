"""This process's line to its nursery: starts it, asks it, hears from it."""

import atexit
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from itertools import count
from typing import IO, Any, TypeVar

from trainkit.config import environ
from trainkit.errors import DeadlineError
from trainkit.waiting import Deadline

__all__ = ["Connection", "NurseryLost", "nursery_for", "nursery_pids"]

T = TypeVar("T")

_START_TIME = 120.0
"""Seconds for the nursery to import what it preloads; torch takes 20 s from a cold disk."""

_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_connections: dict[tuple[str, ...], "Connection"] = {}
_connections_lock = threading.Lock()


class NurseryLost(RuntimeError):
    """The process that forks ranks ended or never came up; the message shows its output."""


def nursery_for(preload: Sequence[str]) -> "Connection":
    """The connection to this process's nursery with ``preload`` imported; starts it if needed.

    Raises:
        NurseryLost: it did not come up.
    """
    key = tuple(preload)
    if "pytest" in sys.modules and "pytest" not in key:
        # A rank imports the test's file, and nearly each of them imports pytest: 0.3 s a rank.
        key += ("pytest",)
    with _connections_lock:
        connection = _connections.get(key)
        if connection is None or not connection.usable:
            connection = _connections[key] = Connection(key)
        return connection


def nursery_pids() -> set[int]:
    """Process ids of the nurseries that this process has started."""
    return {connection.pid for connection in _connections.values() if connection.usable}


class Connection:
    """A nursery, and the socket to it. Usable from several threads, not across a fork."""

    def __init__(self, preload: Sequence[str]) -> None:
        """Start a nursery and wait until it has imported ``preload``.

        Raises:
            NurseryLost: it ended, or did not become ready in time.
        """
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._received = b""
        self._runs: dict[int, Callable[[dict[str, Any]], None]] = {}
        self._answers: list[dict[str, Any]] = []
        self._numbers = count(1)
        # Has no name in any folder, so it is nobody's leftover.
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter
                [sys.executable, "-P", "-m", "trainkit.testing", str(theirs.fileno()), *preload],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                env=_nursery_environ(),
                # A Ctrl-C at the terminal is for the tests; they end the nursery in order.
                start_new_session=True,
            )
        self.pid = self._process.pid
        atexit.register(self.close)
        ready = self._answer(Deadline(_START_TIME), f"the nursery to import {list(preload)}")
        if ready["event"] != "ready":
            self.close()
            raise NurseryLost(f"Ranks cannot be forked: {ready['why']}.")

    @property
    def usable(self) -> bool:
        """Whether it can still be asked, and by this process."""
        return self._owner == os.getpid() and self._process.poll() is None

    def new_run(self, listener: Callable[[dict[str, Any]], None]) -> int:
        """A number for a run, whose events ``listener`` is called with from now on."""
        number = next(self._numbers)
        self._runs[number] = listener
        return number

    def forget(self, run: int) -> None:
        """Stop listening to a run."""
        self._runs.pop(run, None)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request that has an answer, and return the answer.

        Raises:
            NurseryLost: the nursery is gone.
            DeadlineError: it did not answer.
        """
        with self._lock:
            self.tell(**request)
            return self._answer(Deadline(60.0), f"the nursery to answer {request['op']!r}")

    def tell(self, **request: Any) -> None:
        """Send a request that is answered by events only.

        Raises:
            NurseryLost: the nursery is gone.
        """
        with self._lock:
            try:
                self._socket.sendall(json.dumps(request).encode() + b"\n")
            except OSError as reason:
                raise self._lost() from reason

    def listen(self, until: Callable[[], T], *, what: str, deadline: Deadline) -> T:
        """Take in events until ``until()`` is true, and return its value.

        Raises:
            NurseryLost: the nursery is gone.
            DeadlineError: the deadline passed first.
        """
        while True:
            # Short turns, so that threads which listen at the same time take turns too.
            with self._lock:
                result = until()
                if result:
                    return result
                if deadline.passed:
                    raise DeadlineError(f"gave up waiting for {what} after {deadline.seconds:g} s")
                self._take_in(min(0.1, deadline.left))

    def close(self) -> None:
        """End the nursery and all of its ranks. Calling it again does nothing."""
        if self._owner != os.getpid():
            return  # a forked copy of this object: the nursery is not ours to end
        atexit.unregister(self.close)
        self._socket.close()
        try:
            self._process.wait(15.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _answer(self, deadline: Deadline, what: str) -> dict[str, Any]:
        with self._lock:
            self.listen(lambda: self._answers, what=what, deadline=deadline)
            return self._answers.pop(0)

    def _take_in(self, seconds: float) -> None:
        self._socket.settimeout(max(seconds, 0.001))
        try:
            data = self._socket.recv(1 << 16)
        except TimeoutError:
            return
        except OSError as reason:
            raise self._lost() from reason
        finally:
            self._socket.settimeout(None)
        if not data:
            raise self._lost()
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            event = json.loads(line)
            if event["event"] in ("ended", "closed"):
                listener = self._runs.get(event["run"])
                if listener is not None:
                    listener(event)
            else:
                self._answers.append(event)

    def _lost(self) -> NurseryLost:
        try:
            code: int | str = self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            code = "none: it still runs"
        self._log.seek(0)
        said = self._log.read().decode(errors="replace")[-4000:]
        return NurseryLost(
            f"The process that ranks are forked from is gone (exit code {code}). "
            f"Its output:\n{said or '(none)'}"
        )


def _nursery_environ() -> dict[str, str]:
    # One native thread until the fork, since a fork copies only the calling one. The ranks get
    # an environment of their own.
    paths = [path or os.getcwd() for path in sys.path]
    variables = dict(environ()) | dict.fromkeys(_ONE_THREAD, "1")
    variables["PYTHONPATH"] = os.pathsep.join(paths)
    return variables
