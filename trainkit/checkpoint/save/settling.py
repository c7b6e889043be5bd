"""How ranks learn together what came of a save."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from trainkit.checkpoint.failure import Failure
from trainkit.checkpoint.format.layout import StepFolder
from trainkit.checkpoint.save.commit import other_tensors
from trainkit.checkpoint.save.verdicts import Verdicts
from trainkit.checkpoint.save.writers import Work
from trainkit.errors import DeadlineError
from trainkit.waiting import Deadline, backoff

__all__ = ["Flight", "Settling"]

_LOOK = 0.05
"""Seconds between two looks at whether another rank's save has failed."""

_SKEW = 30.0
"""Seconds by which ranks may be apart where a save is settled long after it has begun."""

_DRAIN = 10.0
"""Seconds that the last message of this rank's writer may take."""

_MARGIN = 15.0
"""Seconds that ranks wait longer than rank 0, which knows who is missing."""


@dataclass(slots=True)
class Flight:
    """A save that has begun and is not settled."""

    folder: StepFolder
    deadline: Deadline
    upload: bool
    """Whether it goes to the root; else it stays in the local tier."""
    unseen: bool
    """Whether rank 0 sees nothing of what the others write."""
    division: str = ""
    """Checksum of how tensors were divided; the same on all ranks."""
    stalled: float = 0.0
    """Seconds for which training stood still to begin it."""
    ended: bool = False
    """Whether this rank's own work has."""
    failure: Failure | None = None
    """Of this rank's own work."""
    error: BaseException | None = None
    """What this rank's own work raised in this very process."""


class Settling:
    """Ends saves: rank 0 waits for its own work, which ends with the commit, and tells the others.

    A failure on one rank is one on all.
    """

    def __init__(
        self,
        work: Work,
        verdicts: Verdicts,
        rank: int,
        world_size: int,
        discard: Callable[[StepFolder], None],
    ) -> None:
        """Settle what ``work`` does.

        Args:
            work: of this rank.
            verdicts: to and from the other ranks.
            rank: of this process.
            world_size: number of ranks that save together.
            discard: on rank 0, removes what a failed save has left, before others hear of it.
        """
        self._discard = discard
        self.work = work
        self._verdicts = verdicts
        self._rank = rank
        self._world_size = world_size

    def end(self, flight: Flight) -> Failure | None:
        """Wait for the end of a save on all ranks; what it failed with, the same on each.

        Raises:
            DeadlineError: rank 0 said nothing; not on rank 0.
        """
        return self._lead(flight) if self._rank == 0 else self._follow(flight)

    def look(self, flight: Flight) -> Failure | None:
        """See whether this rank's own work has ended, and with what failure; never waits."""
        ended, failure = self.work.poll(0.0)
        if ended:
            self.own_end(flight, failure)
        return failure

    def own_end(self, flight: Flight, failure: Failure | None) -> None:
        """Note how this rank's own work ended, and tell rank 0 of a failure."""
        flight.ended, flight.failure = True, failure
        if failure is not None:
            self._verdicts.accuse(flight.folder.attempt, failure)
        elif flight.unseen and self._rank != 0:
            self._verdicts.vouch(flight.folder.attempt, flight.division)

    def check_others(self, flight: Flight) -> None:
        """Raise what another rank has failed with, if one has."""
        failure = self._verdicts.failed(flight.folder.attempt)
        if failure is not None:
            raise failure.as_error(self._rank)

    def _lead(self, flight: Flight) -> Failure | None:
        """Rank 0: wait for the commit or a failure of anybody's, and tell the others."""
        limit = Deadline(flight.deadline.left + _MARGIN / 3)
        attempt = flight.folder.attempt
        given_up = False
        while not flight.ended:
            ended, failure = self.work.poll(_LOOK)
            if ended:
                self.own_end(flight, failure)
            elif limit.passed:
                self.work.cancel()
                text = f"step {flight.folder.step} was not saved within {limit.seconds:.0f} s"
                self.own_end(flight, Failure.of(0, DeadlineError(text)))
            elif not given_up and self._verdicts.failed(attempt) is not None:
                self.work.cancel()
                given_up = True
        if flight.failure is None and flight.unseen:
            self._await_unseen(flight)
        if flight.failure is not None:
            # Its own failure may be that it gave up waiting.
            flight.failure = self._verdicts.failed(attempt) or flight.failure
            if flight.upload:
                self._discard(flight.folder)
        self._verdicts.pronounce(attempt, flight.failure)
        return flight.failure

    def _await_unseen(self, flight: Flight) -> None:
        """Wait until the others say that they have written, or one that it has failed."""
        attempt, limit = flight.folder.attempt, Deadline(max(flight.deadline.left, _SKEW))
        pauses = backoff()
        while len(told := self._verdicts.vouched(attempt)) < self._world_size - 1:
            flight.failure = self._verdicts.failed(attempt)
            if flight.failure is None and limit.passed:
                missing = [str(r) for r in range(1, self._world_size) if r not in told]
                text = f"rank(s) {', '.join(missing)} did not save within {limit.seconds:.0f} s"
                flight.failure = Failure.of(0, DeadlineError(text))
            if flight.failure is not None:
                return
            time.sleep(next(pauses))
        self._verdicts.forget_vouched(attempt)
        others = [rank for rank, division in told.items() if division != flight.division]
        if others:
            flight.failure = Failure.of(0, other_tensors(others))

    def _follow(self, flight: Flight) -> Failure | None:
        """Other ranks: end the own work, and hear from rank 0 what came of it all."""
        attempt = flight.folder.attempt
        limit = Deadline(flight.deadline.left + _MARGIN)
        while not self._verdicts.heard(
            attempt, _LOOK if not flight.ended else min(1.0, limit.left + 0.01)
        ):
            if not flight.ended:
                self.look(flight)
            if limit.passed:
                raise DeadlineError(
                    f"saving step {flight.folder.step}: rank {self._rank} waits for "
                    f"rank 0, which did not say within {limit.seconds:.0f} s whether it was "
                    f"committed. Look at the log of rank 0 for the first error."
                )
        outcome = self._verdicts.outcome(attempt)
        if outcome is None:
            self._drain(flight)
        return outcome

    def _drain(self, flight: Flight) -> None:
        """Hear the end of this rank's own work, which rank 0 has seen already."""
        limit = Deadline(_DRAIN)
        while not flight.ended and not limit.passed:
            ended, failure = self.work.poll(limit.left)
            if ended:
                self.own_end(flight, failure)
