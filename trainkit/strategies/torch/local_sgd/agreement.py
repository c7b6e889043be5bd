"""Stopping together where workers come and go: the vote is the first server's."""

import logging
import time
from typing import Any

from trainkit.coordination import StepAgreement
from trainkit.errors import DeadlineError, PeerLostError, TrainkitError
from trainkit.strategies.torch.local_sgd.control_link import ControlLink
from trainkit.strategies.torch.local_sgd.worker import OuterWorker
from trainkit.waiting import Deadline

__all__ = ["StopAgreement"]

log = logging.getLogger(__name__)

_ANSWER = 2.0
"""Seconds for one question to the first server."""
_EVERY = 0.02
"""Seconds between two questions for the step at which all stop."""


class StopAgreement(StepAgreement):
    """As ``StepAgreement``: with the chief, or a server, all members stop after one step.

    A worker that is told to stop alone leaves alone: the others go on, as they do without it in
    any case. So only a notice to the chief or to a server stops the job.
    """

    def __init__(self, worker: OuterWorker, *, timeout: float) -> None:
        """Take part.

        Args:
            worker: of this process; it ends its round at the step where all stop.
            timeout: seconds until this process is killed, or less. Half of them are for the
                others, the rest is for saving.
        """
        self._worker = worker
        self._link = ControlLink(worker.links[0].address, worker.rank, timeout=_ANSWER)
        self._seconds = timeout / 2
        self._decided: int | None = None
        self._entered = 0

    def propose(self) -> None:
        """The chief asks all to stop; another worker only notes that it leaves."""
        if self._worker.is_chief:
            self._ask(what="hold")
        else:
            self._worker.leaving = True

    def asked(self) -> bool:
        """Whether all are to stop."""
        return bool(self._ask(what="asked")["hold"])

    def publish(self, entered: int) -> None:
        """See ``StepAgreement.publish``."""
        self._entered = entered
        if self._worker.stop_by is None:
            self._worker.stop_by = Deadline(self._seconds)
        if not self._worker.leaving:
            self._ask(what="publish", entered=entered)

    def leave(self) -> None:
        """See ``StepAgreement.leave``: nobody waits here for one who has gone."""
        self.propose()
        self.publish(0)

    def reached(self, step: int) -> bool:
        """See ``StepAgreement.reached``; where all stop, the round ends first."""
        if self._worker.leaving:
            log.warning("worker %d leaves after step %d; the others go on", self._worker.rank, step)
            return True
        if self._decided is None:
            self._decided = self._voted(step)
            log.info("all workers stop after step %d", max(self._decided, step))
        if step < self._decided:
            return False
        self._end_round()
        return True

    def close(self) -> None:
        """Ask nothing more."""
        self._link.close()

    def _voted(self, step: int) -> int:
        deadline = self._deadline
        while not deadline.passed:
            try:
                answer = self._ask(what="target")
                if not answer["hold"]:  # a server that has lost its memory
                    self._ask(what="hold")
                    self._ask(what="publish", entered=self._entered)
                elif answer["target"] is not None:
                    return int(answer["target"])
            except ConnectionError as reason:
                log.debug("%s", reason)
            time.sleep(_EVERY)
        log.warning("the workers' steps were not known within %.0f s: stopping here", self._seconds)
        return step

    def _end_round(self) -> None:
        try:
            self._worker.synchronize(self._deadline)
        except (DeadlineError, PeerLostError) as reason:
            # Better the round's start on time than its end too late.
            log.warning("%s: going back to the start of round %d", reason, self._worker.round)
            self._worker.fall_back()

    @property
    def _deadline(self) -> Deadline:
        """From the moment at which this worker heard of the stop."""
        return self._worker.stop_by or Deadline(self._seconds)

    def _ask(self, **question: Any) -> dict[str, Any]:
        try:
            return self._link.ask(**question)
        except TrainkitError:
            raise
        except OSError as reason:
            raise PeerLostError(f"ps 0 does not answer: {reason}") from None
