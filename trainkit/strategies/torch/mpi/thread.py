"""The one thread in which a process group communicates, in the order of the calls."""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.futures import Future

from trainkit.errors import DeadlineError, PeerLostError, StrategyError, TrainkitError
from trainkit.strategies.torch.mpi.attendance import Attendance

__all__ = ["CommunicationThread", "Failed", "Job"]

log = logging.getLogger(__name__)

_POLL = 50e-6
"""Seconds between two looks at messages under way, once they have not come at once."""
_EAGER_LOOKS = 200
_IDLE_POLL = 1e-3
"""The same, once nothing else is to come."""
_LEAVE = 10.0
"""Seconds that the end of a group waits for what is under way."""


@dataclass(slots=True)
class Job:
    """A collective, or a message of one rank to another."""

    what: str
    """For messages: ``all_reduce of 1,024 torch.float32``."""
    run: Callable[[], Any]
    """Does it; what it returns is the result. Of a message: a request of MPI."""
    is_message: bool = False
    finish: Callable[[], Any] = lambda: None
    """Of a message: called when it has come, for the result."""
    devices: Sequence[torch.device] = ()
    future: Future[Any] = field(init=False)
    began: float | None = None

    def __post_init__(self) -> None:
        self.future = Future(devices=list(self.devices))


class CommunicationThread:
    """Runs jobs one after the other; messages between two ranks stay under way meanwhile.

    A collective blocks in MPI or in a socket, so it has to be in a thread of its own, and one
    thread keeps the order that all ranks must share. A second one looks that nothing takes longer
    than ``timeout``: MPI itself waits for ever.
    """

    def __init__(self, name: str, timeout: float, attendance: Attendance) -> None:
        """Start nothing yet; ``submit`` does.

        Args:
            name: of the group, for the names of threads.
            timeout: seconds that a job may take.
            attendance: who has come how far, for the message when a job takes longer.
        """
        self._name = name
        self._timeout = timeout
        self._attendance = attendance
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._messages: list[tuple[Job, Any]] = []
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._current: Job | None = None
        self._over = threading.Event()
        self.failure: BaseException | None = None
        self.begun = 0
        """Collectives that this rank has begun."""

    def submit(self, job: Job) -> Future[Any]:
        """Run ``job`` after those before it.

        Returns:
            A future whose failure C++ sees too: DDP's reducer waits there.
        """
        if self._over.is_set() and self.failure is None:
            raise RuntimeError(f"{job.what}: this process group has been destroyed")
        if not self._threads:
            self._start()
        outward = job.future.then(_raise_or_return)
        self._jobs.put(job)
        if self.failure is not None:  # only now: where the thread is in MPI, nobody takes it
            self._drain()
        return outward

    def move_messages(self) -> bool:
        """While a collective waits outside of MPI, on this thread: messages move in MPI's calls.

        Returns:
            Whether there are any under way.
        """
        if self._messages and self.failure is None:
            self._finish_messages()
        return bool(self._messages) and self.failure is None

    def fail(self, reason: BaseException) -> None:
        """Let everything that waits, and all that comes, fail with ``reason``."""
        with self._lock:
            self.failure = self.failure or reason
            waiting = [job for job, _ in self._messages]
            if self._current is not None:
                waiting.append(self._current)
        for job in waiting:
            _fail(job, self.failure)
        self._drain()

    def close(self) -> bool:
        """Let what is under way end, messages too, then end the threads.

        Returns:
            Whether all has ended; if not, the communicator and its buffers are still in use.
        """
        self._over.set()
        if not self._threads:
            return True
        self._jobs.put(None)
        for thread in self._threads:
            thread.join(_LEAVE)
        return not any(thread.is_alive() for thread in self._threads)

    def _start(self) -> None:
        # Daemons: a rank that fails must end though a peer never answers.
        for run, name in ((self._communicate, "mpi"), (self._watch, "mpi-watch")):
            thread = threading.Thread(target=run, name=f"trainkit-{name}-{self._name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _communicate(self) -> None:
        while True:
            job = self._next()
            if job is None:
                while self.move_messages():
                    time.sleep(_IDLE_POLL)
                return
            if self.failure is not None:
                _fail(job, self.failure)
                continue
            with self._lock:
                job.began = time.monotonic()
                self._current = None if job.is_message else job
                self.begun += not job.is_message
            try:
                result = job.run()
            except BaseException as reason:
                self._broken(job, reason)
                continue
            if job.is_message:
                with self._lock:
                    self._messages.append((job, result))
                continue
            with self._lock:
                self._current = None
            _succeed(job, result)

    def _next(self) -> Job | None:
        """The next job; messages under way move on until there is one."""
        looks = 0
        while self._messages and self.failure is None:
            with contextlib.suppress(queue.Empty):
                return self._jobs.get_nowait()
            if self._finish_messages():
                looks = 0
            looks += 1
            if looks > _EAGER_LOOKS and self._messages:
                with contextlib.suppress(queue.Empty):
                    return self._jobs.get(timeout=_POLL)
        return self._jobs.get()

    def _finish_messages(self) -> bool:
        done = []
        for job, request in list(self._messages):
            try:
                if request.Test():
                    done.append(job)
            except BaseException as reason:
                self._broken(job, reason)
                return True
        if not done:
            return False
        with self._lock:
            self._messages = [pair for pair in self._messages if pair[0] not in done]
        for job in done:
            _succeed(job, job.finish())
        return True

    def _broken(self, job: Job, reason: BaseException) -> None:
        """One that failed halfway leaves ranks at different places: nothing more can be right."""
        log.debug("%s failed", job.what, exc_info=reason)
        if not isinstance(reason, Exception | TrainkitError):
            reason = RuntimeError(f"{job.what}: {reason!r}")
        if type(reason).__module__.startswith("mpi4py"):
            reason = _told(job, reason)
        with self._lock:
            self.failure = self.failure or reason
            if self._current is job:
                self._current = None
        _fail(job, reason)
        self.fail(reason)

    def _drain(self) -> None:
        ends = False
        with contextlib.suppress(queue.Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    _fail(job, self.failure or RuntimeError("failed before"))
                ends = ends or job is None
        if ends:
            self._jobs.put(None)

    def _watch(self) -> None:
        pause = min(5.0, max(0.05, self._timeout / 10))
        while not self._over.wait(pause):
            now = time.monotonic()
            with self._lock:
                jobs = [job for job, _ in self._messages]
                if self._current is not None:
                    jobs.append(self._current)
                late = [j for j in jobs if j.began is not None and now - j.began > self._timeout]
            self._attendance.tell(self.begun)
            if late and self.failure is None:
                whom = self._attendance.behind(self.begun) or "another rank"
                self.fail(
                    DeadlineError(
                        f"{late[0].what}: timed out waiting for {whom} after "
                        f"{self._timeout:.0f} s. Look at the log of the missing rank(s) for the "
                        f"first error; TRAINKIT_TIMEOUT sets the seconds."
                    )
                )


def _told(job: Job, reason: Any) -> TrainkitError:
    """What an exception of MPI's means: the ranks' calls do not fit, or one of them is gone."""
    from mpi4py import MPI

    if reason.Get_error_class() in (MPI.ERR_TRUNCATE, MPI.ERR_COUNT, MPI.ERR_ARG, MPI.ERR_TAG):
        return StrategyError(
            f"{job.what} failed in MPI: {reason}. What one rank sends and another receives must "
            f"be of one size and dtype, of fewer than 2^31 elements, and all ranks make the same "
            f"collective calls in one order."
        )
    return PeerLostError(
        f"{job.what} failed in MPI: {reason} (connection closed by peer, most likely). "
        f"Look at the log of the other ranks for the first error."
    )


def _raise_or_return(future: Future[Any]) -> Any:
    result = future.value()
    if isinstance(result, Failed):
        raise result.reason
    return result


@dataclass(frozen=True, slots=True)
class Failed:
    """``Future.set_exception`` is seen in Python alone; a callback that raises, in C++ too."""

    reason: BaseException


def _fail(job: Job, reason: BaseException) -> None:
    if not job.future.done():
        # The watching thread may have been first.
        with contextlib.suppress(RuntimeError):
            job.future.set_result(Failed(reason))


def _succeed(job: Job, result: Any) -> None:
    if not job.future.done():
        with contextlib.suppress(RuntimeError):
            job.future.set_result(result)
