"""Signals that come for the launcher, and what they mean for its ranks."""

import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType

from trainkit.errors import ExitCode, Preempted
from trainkit.launch.local_ranks import LocalRanks
from trainkit.lifecycle.preemption import NoticeListener

__all__ = ["Supervisor", "end_by_signals"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""What torchrun passes on, too."""

_STUCK = 5.0
"""Seconds after which a launcher that waits for others in C ends without its main thread."""


def end_by_signals(notices: Sequence[signal.Signals]) -> None:
    """Until a supervisor is there, end by the first signal that asks for it.

    As process 1 of a container this process would not even be ended by SIGTERM without a handler,
    and importing torch takes its time.
    """
    for number in (*_SIGNALS, *notices):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _Leave(notices))


class _Leave:
    """A handler that ends this process, until a supervisor takes its place."""

    def __init__(self, notices: Sequence[signal.Signals]) -> None:
        self._notices = notices

    def __call__(self, number: int, frame: FrameType | None) -> None:
        del frame
        # Nothing is there to be cleaned up, and what is being imported might swallow an exception.
        name = signal.Signals(number).name
        os.write(2, f"trainkit: {name} before anything was started\n".encode())
        os._exit(_code_after(signal.Signals(number), self._notices))


def _code_after(number: signal.Signals, notices: Sequence[signal.Signals]) -> int:
    if number is signal.SIGINT:
        return ExitCode.INTERRUPTED
    return ExitCode.PREEMPTED if number in notices else 128 + number


class Supervisor:
    """Passes the first signal on to all ranks; a second one, a second later, ends all at once.

    Used from the main thread, as a context. Its thread hears at once, also while the main thread
    waits in C; the nursery ends the ranks of a launcher that is gone.
    """

    def __init__(self, *, notices: Sequence[signal.Signals], grace_period: float) -> None:
        """Prepare.

        Args:
            notices: signals that announce a pre-emption.
            grace_period: seconds that ranks get.
        """
        self._notices = tuple(notices)
        self._grace_period = grace_period
        self._ranks: LocalRanks | None = None
        self._stop_signal: signal.Signals | None = None
        self._over = False
        self._listener = NoticeListener(
            dict.fromkeys((*_SIGNALS, *notices)),
            on_notice=self._hear,
            on_main_thread=self._end_where_nothing_runs,
        )

    def __enter__(self) -> "Supervisor":
        early = [
            number
            for number in (*_SIGNALS, *self._notices)
            if isinstance(signal.getsignal(number), _Leave)
        ]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, early)
        for number in early:
            signal.signal(number, signal.SIG_DFL)  # the listener calls what was there before it
        self._listener.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over = True
        self._listener.close()

    def look_after(self, ranks: LocalRanks, stop_signal: signal.Signals | None = None) -> None:
        """From now on pass signals on to ``ranks``.

        Args:
            ranks: what runs here.
            stop_signal: what to send for a notice; the notice itself by default.
        """
        self._ranks, self._stop_signal = ranks, stop_signal

    def code_after(self, number: signal.Signals) -> int:
        """The exit code of a launcher that was asked to end by ``number``, and did."""
        return _code_after(number, self._notices)

    def _hear(self, number: signal.Signals) -> None:
        if self._ranks is not None:
            sent = self._stop_signal if number in self._notices else None
            self._ranks.pass_on(number, self._grace_period, sent)
            if self._ranks.running:
                return
        timer = threading.Timer(_STUCK, self._leave, (number,))
        timer.daemon = True
        timer.start()

    def _leave(self, number: signal.Signals) -> None:
        if not self._over and (self._ranks is None or not self._ranks.running):
            os._exit(self.code_after(number))

    def _end_where_nothing_runs(self, number: signal.Signals) -> None:
        if self._ranks is None or not self._ranks.running:
            raise Preempted(
                f"{number.name} while no rank was running here",
                exit_code=self.code_after(number),
            )
