"""What a rank knows about its own end: asked to stop, when, and how long it still has."""

import logging
import signal
import time

from trainkit.coordination import StepAgreement
from trainkit.errors import ExitCode, Preempted
from trainkit.lifecycle.preemption import NoticeListener

__all__ = ["RankMonitor"]

log = logging.getLogger(__name__)


class RankMonitor:
    """The one listener of a training step, handed to whoever has to know.

    ``stop_now`` is asked after every step; while nobody wants to stop it costs an attribute
    assignment and a branch.
    """

    def __init__(
        self,
        *,
        signals: tuple[signal.Signals, ...] = (signal.SIGTERM,),
        grace_period: float = 30.0,
        agreement: StepAgreement | None = None,
    ) -> None:
        """Prepare; ``start`` begins to listen.

        Args:
            signals: notices of a pre-emption; SIGINT is always listened for too.
            grace_period: seconds between the notice and the kill.
            agreement: among the ranks of the job; None for a single rank.
        """
        self.grace_period = grace_period
        self.notice: signal.Signals | None = None
        """The signal that this rank has heard, if any."""
        self.stopped = False
        """Whether ``stop_now`` has said so: all ranks stop here, in order."""
        self._heard_at: float | None = None
        self._agreement = agreement
        self._polled = False
        self._listener = NoticeListener(
            dict.fromkeys((*signals, signal.SIGINT)),
            on_notice=self._hear,
            on_main_thread=self._end_where_nothing_polls,
            look=None if agreement is None else self._look,
        )

    def start(self) -> None:
        """Begin to listen; from the main thread."""
        self._listener.start()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    @property
    def preempted(self) -> bool:
        """Whether this job is to stop, as far as this rank knows.

        True on every rank soon after one heard of it, but not at the same moment: for leaving
        an evaluation loop, say. What all ranks must do together asks ``stop_now``.
        """
        self._polled = True
        return self._heard_at is not None

    def stop_now(self, step: int) -> bool:
        """Whether to stop after ``step``: the same answer at the same step on all ranks."""
        self._polled = True
        if self._agreement is not None:
            self.stopped = self._agreement.reached(step)
        else:
            self.stopped = self._heard_at is not None
        return self.stopped

    def time_left(self) -> float | None:
        """Seconds until the kill is due; None while nobody has asked to stop."""
        if self._heard_at is None:
            return None
        return max(0.0, self.grace_period - (time.monotonic() - self._heard_at))

    @property
    def exit_code(self) -> ExitCode:
        """What a stop that was asked for ends with: 130 after SIGINT, else 143."""
        return ExitCode.INTERRUPTED if self.notice is signal.SIGINT else ExitCode.PREEMPTED

    def _hear(self, number: signal.Signals) -> None:
        self.notice = number
        self._heard_at = time.monotonic()
        log.warning(
            "%s: stopping after a step on which all ranks agree; %.0f s of grace",
            number.name,
            self.grace_period,
        )
        if self._agreement is not None:
            self._agreement.propose()

    def _look(self) -> None:
        if self._agreement is not None and self._agreement.look() and self._heard_at is None:
            self._heard_at = time.monotonic()
            log.warning("another rank was asked to stop: all ranks stop together")

    def _end_where_nothing_polls(self, number: signal.Signals) -> None:
        if self._polled:
            return
        if number is signal.SIGINT:
            raise KeyboardInterrupt
        raise Preempted(
            f"{number.name} before the first step was done: ended at once, nothing new was saved"
        )
