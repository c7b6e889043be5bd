"""Ends a rank whose training waits for a thread of XGBoost's that has gone.

XGBoost sends and receives in a thread of its own, which ends when a connection breaks; the thread
that trains then raises. Now and then it misses that, and waits for ever (XGBoost 3.2: one of some
thirty losses of a peer). Python's lock is free meanwhile, so a thread of ours can tell.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

from trainkit.errors import TrainkitError

__all__ = ["StuckWatch"]

_EVERY = 0.2
"""Seconds between two looks: ranks that have noticed the loss wait 1.5 s for those that live."""
_PATIENCE = 10.0
"""Seconds for training to raise by itself, which it does within milliseconds."""
_TASKS = "/proc/self/task"


class StuckWatch:
    """Watches the calls of one thread into XGBoost, from the connection to the end of training."""

    def __init__(self) -> None:
        self._threads: set[str] = set()
        self._trainer = 0
        self._began: float | None = None
        """When the trainer's call into XGBoost began; None while it is in none."""
        self._over = threading.Event()

    @contextlib.contextmanager
    def connecting(self) -> Iterator[None]:
        """Note which threads XGBoost starts meanwhile; called by the thread that will train."""
        before = _tasks()
        yield
        own = {str(thread.native_id) for thread in threading.enumerate()}
        self._threads = _tasks() - before - own
        self._trainer = threading.get_ident()

    def start(self, gone: Callable[[], None], end: Callable[[], None]) -> None:
        """Begin.

        Args:
            gone: called as soon as XGBoost's threads are no longer there, in this thread.
            end: ends the process, since training does not.
        """
        if not self._threads:  # no /proc, or another XGBoost
            return
        threading.Thread(
            target=self._watch, args=(gone, end), name="trainkit-stuck", daemon=True
        ).start()

    def stop(self) -> None:
        """Training has raised, or is over; any number of times."""
        self._over.set()  # and not waited for: it may be talking to a store that does not answer

    def enter(self) -> bool:
        """A call into XGBoost begins, in whichever thread; what it returns is for ``leave``."""
        if self._began is not None or threading.get_ident() != self._trainer:
            return False
        self._began = time.monotonic()
        return True

    def leave(self, entered: bool) -> None:
        """The call has ended."""
        if entered:
            self._began = None

    def _watch(self, gone: Callable[[], None], end: Callable[[], None]) -> None:
        while all(os.path.exists(f"{_TASKS}/{thread}") for thread in self._threads):
            if self._over.wait(_EVERY):
                return
        with contextlib.suppress(TrainkitError, OSError):  # training closes the store meanwhile
            gone()
        since = time.monotonic()
        while not self._over.wait(_EVERY):
            began = self._began
            # A call that began later has raised at once, or is none of these connections.
            if began is None or began > since:
                return
            if time.monotonic() - since > _PATIENCE:
                end()
                return


def _tasks() -> set[str]:
    try:
        return set(os.listdir(_TASKS))
    except OSError:
        return set()
