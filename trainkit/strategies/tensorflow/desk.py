"""How the chief and those who serve it know of each other, beside TensorFlow's own connections.

TensorFlow's servers never return, and notice neither that the chief is done nor that it is gone.
So the chief opens a small store, its desk: servers report there, and learn its end from it.
"""

import logging
import threading
import time
import uuid
from contextlib import closing, suppress

from trainkit.coordination import PrefixedStore, StepAgreement, Store
from trainkit.coordination.client import RemoteStore, connect_store, serve_store
from trainkit.errors import TrainkitError
from trainkit.strategies.tensorflow.tasks import Task, Tasks
from trainkit.waiting import Deadline, wait_until

__all__ = ["ENDED", "Desk", "Guest", "TrainingEnd"]

log = logging.getLogger(__name__)

ENDED = "ended"
_SERVING, _LEFT = "serving", "left"
_LISTENING, _HEARD = "listening", "heard"
_FAREWELL = 5.0
"""Seconds in which those who serve hear that the chief is done."""
_TOGETHER = 5.0
"""Seconds within which notices to stop reach all processes of a job that is stopped as a whole."""
_SLICE = 1.0
"""Seconds of one wait in the store."""
_AGAIN = 2.0
"""Seconds between two attempts to reach a chief that is not there."""


class Desk:
    """The chief's side."""

    def __init__(self, store: RemoteStore, tasks: Tasks) -> None:
        """Wrap a store that this process serves."""
        self._store = store
        self._tasks = tasks

    @classmethod
    def open(cls, tasks: Tasks, port: int, deadline: Deadline) -> "Desk":
        """Serve the store, and wait until every parameter server and worker serves.

        Raises:
            DeadlineError: some did not come; the message names them and their addresses.
            EnvironmentFaultError: the port is taken.
        """
        store = serve_store(port, deadline)
        desk = cls(store, tasks)

        def missing() -> list[Task]:
            return [task for task in tasks.servers if store.get(f"{_SERVING}/{task}") is None]

        def named() -> str:
            return "missing: " + ", ".join(f"{task} at {tasks.address(task)}" for task in missing())

        try:
            wait_until(
                lambda: not missing(),
                what="the parameter servers and workers to serve",
                whom=named,
                deadline=deadline,
                hint="Look at the pods of the missing ones; TRAINKIT_TIMEOUT sets the seconds.",
            )
        except BaseException:
            store.close()
            raise
        return desk

    def notices(self) -> Store:
        """A store, on a connection of its own, in which a server may ask the job to stop."""
        return PrefixedStore("notice", RemoteStore("127.0.0.1", self._store.port, _FAREWELL))

    def say_goodbye(self) -> None:
        """Tell all that the job is done, and let those who are there hear it."""
        self._store.set(ENDED, b"1")
        until = Deadline(_FAREWELL)
        while not until.passed and not self._all_have_heard():
            time.sleep(0.01)

    def _all_have_heard(self) -> bool:
        if self._store.add(_LISTENING, 0) > self._store.add(_HEARD, 0):
            return False
        return all(self._has_left(task) for task in self._tasks.servers)

    def _has_left(self, task: Task) -> bool:
        """Whether the newest process of this task has said goodbye."""
        came = self._store.get(f"{_SERVING}/{task}")
        return came is None or self._store.get(f"{_LEFT}/{came.decode()}") is not None

    def close(self) -> None:
        """Hang up on everybody."""
        self._store.close()


class Guest:
    """The side of a parameter server or worker."""

    def __init__(self, store: RemoteStore, me: str) -> None:
        """Wrap a connection to the chief's desk."""
        self._store = store
        self._me = me
        self._identity = uuid.uuid4().hex

    @classmethod
    def connect(cls, address: tuple[str, int], me: str, deadline: Deadline) -> "Guest":
        """Reach the chief.

        Raises:
            DeadlineError: it is not there in time; the message names its address.
        """
        return cls(connect_store(*address, me, deadline), me)

    def report(self) -> None:
        """Say that this process serves."""
        self._store.set(f"{_SERVING}/{self._me}", self._identity.encode())

    def await_end(self) -> None:
        """Return once the chief has said that the job is done.

        Raises:
            RetryableError: the chief is gone without having said so.
        """
        while not self._store.wait(ENDED, _SLICE):
            pass
        self._store.set(f"{_LEFT}/{self._identity}", b"1")

    def ask_to_stop(self, seconds: float) -> None:
        """Have the chief save and stop, and return when it has left; after ``seconds`` anyway."""
        until = Deadline(seconds)
        with suppress(OSError, TrainkitError), closing(self._another()) as store:
            _stop_of(store, seconds).propose()
            _await_end(store, until)

    def stay_while_stopping(self, seconds: float) -> bool:
        """If the chief is asked to stop too, return when it has left; after ``seconds`` anyway.

        It needs its workers for the steps that it has handed out, and only then can it save.

        Returns:
            Whether it was asked.
        """
        until, together = Deadline(seconds), Deadline(min(_TOGETHER, seconds / 4))
        asked = False
        with suppress(OSError, TrainkitError), closing(self._another()) as store:
            stop = _stop_of(store, seconds)
            while not (asked := stop.asked()) and not together.passed:
                time.sleep(0.1)
            if asked:
                _await_end(store, until)
        return asked

    def _another(self) -> RemoteStore:
        """A connection of its own: a notice may have come in the middle of an answer.

        Whoever uses it ignores that it breaks: the chief has stopped then.
        """
        return RemoteStore(self._store.host, self._store.port, _FAREWELL)

    def close(self) -> None:
        """Hang up."""
        self._store.close()


def _stop_of(store: RemoteStore, seconds: float) -> StepAgreement:
    """Where the chief is asked to stop: see ``Desk.notices``."""
    return StepAgreement(PrefixedStore("notice", store), 0, 1, timeout=seconds)


def _await_end(store: RemoteStore, until: Deadline) -> None:
    while not until.passed and not store.wait(ENDED, min(_SLICE, until.left)):
        pass


class TrainingEnd:
    """The side of an evaluator: hears in a thread of its own whether the chief is done."""

    def __init__(self, address: tuple[str, int]) -> None:
        """Listen at the chief's desk, whenever it is there."""
        self.heard = False
        self._address = address
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="trainkit-end", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._closed.is_set() and not self.heard:
            try:
                store = RemoteStore(*self._address, _FAREWELL)
                try:
                    self._wait(store)
                finally:
                    store.close()
            except (OSError, TrainkitError):
                self._closed.wait(_AGAIN)

    def _wait(self, store: RemoteStore) -> None:
        store.add(_LISTENING, 1)
        while not self._closed.is_set() and not self.heard:
            self.heard = store.wait(ENDED, _SLICE)
        store.add(_HEARD, 1)

    def close(self) -> None:
        """Stop listening."""
        self._closed.set()
        self._thread.join(_SLICE + _FAREWELL)
