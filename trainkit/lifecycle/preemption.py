"""Hearing that this job is to stop, at once, even while the main thread is inside C.

Python runs a signal handler only when its main thread gets back to the interpreter, which a
collective can delay by seconds. The interpreter's C handler, though, writes the signal's
number to a wake-up descriptor at once; a thread listens there.
"""

import contextlib
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

__all__ = ["LOOK", "Lookout", "NoticeListener"]

log = logging.getLogger(__name__)

_SECOND_NOTICE_AFTER = 1.0
"""Seconds after which another signal is a second wish and not an echo of the first: a
terminal and the launcher often both pass one Ctrl-C on."""

LOOK = 0.2
"""Seconds between two looks at what other ranks ask for."""

_LEAVE = 10.0
"""Seconds that a look which is under way gets at the end. Its store may have frozen with the
host of rank 0, and a rank must be able to end all the same; but an interpreter that ends while a
thread is in the store's C++ is aborted, and on a busy host a second passes without a look."""


class NoticeListener:
    """Listens for signals that announce the end. Its thread does nothing that can block."""

    def __init__(
        self,
        signals: Iterable[signal.Signals],
        *,
        on_notice: Callable[[signal.Signals], None],
        on_main_thread: Callable[[signal.Signals], None],
    ) -> None:
        """Prepare to listen; ``start`` begins.

        Args:
            signals: the notices.
            on_notice: called from the listening thread at the first signal.
            on_main_thread: called where Python handles signals; it may raise.
        """
        self._signals = tuple(signals)
        self._on_notice = on_notice
        self._on_main_thread = on_main_thread
        self._previous: dict[signal.Signals, Any] = {}
        self._first: float | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to listen; where signals cannot be heard, outside the main thread, say so."""
        if threading.current_thread() is not threading.main_thread():
            log.warning("not in the main thread: this rank hears no notice to stop of its own")
            return
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_write.setblocking(False)
        self._stop_read, self._stop_write = os.pipe()
        self._previous_fd = signal.set_wakeup_fd(
            self._wake_write.fileno(), warn_on_full_buffer=False
        )
        for number in self._signals:
            self._previous[number] = signal.signal(number, self._handle)
        self._thread = threading.Thread(target=self._listen, name="trainkit-notices", daemon=True)
        self._thread.start()
        _Forks.tell(self)

    def close(self) -> None:
        """Stop listening and give the signals back to whoever had them."""
        if self._thread is None:
            return
        self._give_signals_back()
        signal.set_wakeup_fd(self._previous_fd)
        # A byte, not the end of the pipe: a process forked meanwhile holds its write end too.
        os.write(self._stop_write, b"x")
        self._thread.join()
        self._thread = None
        _Forks.listener = None
        os.close(self._stop_write)
        os.close(self._stop_read)
        self._wake_read.close()
        self._wake_write.close()

    def deafen_child(self) -> None:
        """In a forked process: it is no rank, and its signals are no notices to its parent."""
        signal.set_wakeup_fd(-1)
        self._give_signals_back()

    def _give_signals_back(self) -> None:
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Python's own handler: ours first, then the one that was there before."""
        if self._first is None:
            # Usually the thread has heard by now; not where somebody took the wake-up
            # descriptor for himself, as asyncio's signal handlers do.
            with contextlib.suppress(OSError):
                self._wake_write.send(bytes([number]))
        previous = self._previous.get(signal.Signals(number))
        try:
            self._on_main_thread(signal.Signals(number))
        finally:
            if callable(previous) and previous is not signal.default_int_handler:
                previous(number, frame)

    def _listen(self) -> None:
        readers: list[Any] = [self._wake_read, self._stop_read]
        while True:
            ready, _, _ = select.select(readers, [], [])
            if self._stop_read in ready:
                return
            for number in self._wake_read.recv(64):
                self._hear(number)

    def _hear(self, number: int) -> None:
        if number not in self._signals:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = now
            self._on_notice(signal.Signals(number))
        elif now - self._first >= _SECOND_NOTICE_AFTER:
            # What is being saved is uncommitted until its manifest is there, so ending is safe.
            os.write(2, f"trainkit: second {signal.Signals(number).name}: ending now\n".encode())
            os._exit(128 + number)


class Lookout:
    """A thread that looks a few times a second at what other ranks ask for."""

    def __init__(self, look: Callable[[], None]) -> None:
        """Look by calling ``look``, which may wait for a store."""
        self._look = look
        self._stirred = threading.Event()
        self._owed = False
        self._over = False
        self._thread = threading.Thread(target=self._run, name="trainkit-lookout", daemon=True)
        self._thread.start()

    def stir(self) -> None:
        """Look now."""
        self._stirred.set()

    def owe(self) -> None:
        """Look once more in any case, even after ``close``.

        Without a lock, since it is called where a signal is handled, and signals may come there.
        """
        self._owed = True

    def close(self) -> None:
        """Stop looking; a look that does not come back is left behind."""
        self._over = True
        self._stirred.set()
        self._thread.join(_LEAVE)

    def _run(self) -> None:
        while self._owed or not self._over:
            self._owed = False
            # The store may be gone when rank 0 ended first; the training thread will say so.
            with contextlib.suppress(ConnectionError):
                self._look()
            self._stirred.wait(LOOK)
            self._stirred.clear()


class _Forks:
    """Which listener a forked child has to silence; hooks of ``fork`` cannot be taken back."""

    listener: NoticeListener | None = None
    _hooked = False

    @classmethod
    def tell(cls, listener: NoticeListener) -> None:
        cls.listener = listener
        if not cls._hooked:
            cls._hooked = True
            os.register_at_fork(after_in_child=cls._silence)

    @classmethod
    def _silence(cls) -> None:
        if cls.listener is not None:
            cls.listener.deafen_child()
            cls.listener = None
