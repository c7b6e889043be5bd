"""What a rank knows about its own end: asked to stop, when, and how long it still has."""

import logging
import signal
import time

from trainkit.coordination import StepAgreement
from trainkit.errors import ExitCode, Preempted
from trainkit.lifecycle.heartbeat import Heartbeat
from trainkit.lifecycle.preemption import LOOK, Lookout, NoticeListener

__all__ = ["RankMonitor"]

log = logging.getLogger(__name__)


class RankMonitor:
    """The one listener of a training step, handed to whoever has to know.

    After every step the training loop sets ``last_step`` and looks at ``stirred``, in this order;
    only if that is true it asks ``stop_now``.
    """

    def __init__(
        self,
        *,
        signals: tuple[signal.Signals, ...] = (signal.SIGTERM,),
        grace_period: float = 30.0,
        heartbeat_file: str | None = None,
    ) -> None:
        """Prepare; ``start`` begins to listen.

        Args:
            signals: notices of a pre-emption; SIGINT is always listened for too.
            grace_period: seconds between the notice and the kill.
            heartbeat_file: where the launcher looks for the step, to find out about hangs.
        """
        self.grace_period = grace_period
        self.last_step: int | None = None
        """The step that the loop has done last."""
        self.stirred = False
        """Whether somebody wants to stop, so that ``stop_now`` has something to decide."""
        self.notice: signal.Signals | None = None
        """The signal that this rank has heard, if any."""
        self.stopped_at: int | None = None
        """The step after which ``stop_now`` said to stop: all ranks stop there, in order."""
        self.told = False
        """Whether ``preempted`` has answered True to somebody, who may have stopped for it."""
        self._heard_at: float | None = None
        self._agreement: StepAgreement | None = None
        self._published = False
        self._leaving = False
        self._lookout: Lookout | None = None
        self._polls = 0
        self._heartbeat_file = heartbeat_file
        self._heartbeat: Heartbeat | None = None
        self._listener = NoticeListener(
            dict.fromkeys((*signals, signal.SIGINT)),
            on_notice=self._hear,
            on_main_thread=self._end_where_nothing_polls,
        )

    def start(self) -> None:
        """Begin to listen; from the main thread, and before anything that may take long."""
        self._listener.start()
        if self._heartbeat_file is not None:
            self._heartbeat = Heartbeat(self._heartbeat_file, self._progress)

    def agree_with(self, agreement: StepAgreement) -> None:
        """From now on stop together with the other ranks of ``agreement``."""
        self._agreement = agreement
        self._lookout = Lookout(self._look)

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()
        if self._heartbeat is not None:
            self._heartbeat.close()
        if self._lookout is not None:
            self._lookout.close()
            if self._leaving:
                time.sleep(2 * LOOK)  # the others' look at it: the store may end with this process

    @property
    def preempted(self) -> bool:
        """Whether this job is to stop, as far as this rank knows.

        True on every rank soon after one heard of it, but not at the same moment: for leaving
        an evaluation loop, say. What all ranks must do together asks ``stop_now``.
        """
        self._polls += 1
        self.told = self.told or self._heard_at is not None
        return self.told

    def stop_now(self, step: int) -> bool:
        """Whether to stop after ``step``: the same answer at the same step on all ranks.

        Raises:
            Preempted: a rank has ended at once, so that nothing can be saved together.
        """
        self.last_step = step
        if not self.stirred:
            return False
        stop = self._agreement is None or self._agreement.reached(step)
        if self._agreement is not None and self._agreement.left:
            ranks = ", ".join(str(rank) for rank in self._agreement.left)
            raise Preempted(
                f"stopped after step {step} as asked; nothing new was saved, since rank(s) {ranks} "
                f"ended at once: no step there had asked whether to stop",
                exit_code=self.exit_code,
            )
        if stop:
            self.stopped_at = step
        return stop

    def time_left(self) -> float | None:
        """Seconds until the kill is due; None while nobody has asked to stop."""
        if self._heard_at is None:
            return None
        return max(0.0, self.grace_period - (time.monotonic() - self._heard_at))

    @property
    def exit_code(self) -> ExitCode:
        """What a stop that was asked for ends with: 130 after SIGINT, else 143."""
        return ExitCode.INTERRUPTED if self.notice is signal.SIGINT else ExitCode.PREEMPTED

    @property
    def deserted(self) -> bool:
        """Whether a rank has ended at once, as ``stop_now`` found out: nobody waits for it."""
        return self._agreement is not None and bool(self._agreement.left)

    def _progress(self) -> tuple[int, int]:
        return (-1 if self.last_step is None else self.last_step), self._polls

    def _hear(self, number: signal.Signals) -> None:
        self.notice = number
        self._heard_at = time.monotonic()
        if self._lookout is not None:
            self._lookout.stir()
        else:
            self.stirred = True  # ranks that agree only later hear of it all the same
        log.warning(
            "%s: stopping after a step on which all ranks agree; %.0f s of grace",
            number.name,
            self.grace_period,
        )

    def _look(self) -> None:
        if self._agreement is None:
            return
        if self._leaving:
            self.stirred = True  # somebody may have swallowed the exception, and train on
            self._agreement.leave()  # first, so that nobody who is asked to stop waits for it
            self._agreement.propose()
        if self._leaving or self._published:
            return
        if self.notice is not None:
            self._agreement.propose()
        elif not self._agreement.asked():
            return
        # Order matters: after this assignment the training thread enters no further step
        # without asking, so the step read below is the last one that it can have entered.
        self.stirred = True
        self._agreement.publish(0 if self.last_step is None else self.last_step + 1)
        self._published = True  # only now: a store that failed is tried again
        if self._heard_at is None:
            self._heard_at = time.monotonic()
            log.warning("another rank was asked to stop: all ranks stop together")

    def _end_where_nothing_polls(self, number: signal.Signals) -> None:
        if self._polls or self.last_step is not None:
            return
        self._leaving = True
        if self._lookout is not None:
            self._lookout.owe()
        if number is signal.SIGINT:
            raise KeyboardInterrupt
        raise Preempted(
            f"{number.name}, and no step has asked whether to stop: ended at once, nothing new "
            f"was saved"
        )
