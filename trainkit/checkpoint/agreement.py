"""What fails on one rank fails on all: nobody goes on alone, and nobody waits for the dead."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from trainkit.checkpoint.failure import Failure
from trainkit.coordination import Communicator
from trainkit.errors import Preempted, TrainkitError

__all__ = ["Outcome", "Prepared", "give_back_together", "on_all_ranks"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What an action came to on all ranks; the same on each but for ``error``."""

    results: list[T | None]
    failures: list[Failure]
    error: BaseException | None

    def check(self) -> list[T]:
        """The results by rank, if there was no failure.

        Raises:
            BaseException: this rank's own error, or one like that of the first rank that failed.
        """
        if self.error is not None:
            raise self.error
        if self.failures:
            raise self.failures[0].as_error(-1)
        return self.results  # type: ignore[return-value]

    @property
    def io_only(self) -> bool:
        """Whether there are failures and all are I/O errors, so that one may try again."""
        return bool(self.failures) and all(failure.is_io for failure in self.failures)


def on_all_ranks(
    communicator: Communicator, action: Callable[[], T], *, timeout: float
) -> Outcome[T]:
    """Run ``action`` on this rank, and learn what it came to on all; every rank calls it.

    Args:
        communicator: of the ranks.
        action: what this rank does; its result is sent to the others.
        timeout: seconds to wait for the slowest rank.

    Raises:
        DeadlineError: some ranks did not come; the message names them.
    """
    result: T | None = None
    error: BaseException | None = None
    try:
        result = action()
    except Preempted:
        raise
    except (Exception, TrainkitError) as failed:
        error = failed
    failure = None if error is None else Failure.of(communicator.rank, error)
    gathered: list[tuple[Any, Failure | None]] = communicator.all_gather_object(
        (result, failure), timeout=timeout
    )
    failures = [failed for _, failed in gathered if failed is not None]
    return Outcome([value for value, _ in gathered], failures, error)


class Prepared(Protocol):
    """What gives a checkpoint back on one rank, in two steps."""

    @property
    def reads(self) -> bool:
        """Whether the first of them does anything."""
        ...

    def read(self) -> None:
        """See ``Restoration.read``."""
        ...

    def apply(self) -> None:
        """See ``Restoration.apply``."""
        ...


def give_back_together(
    communicator: Communicator, prepare: Callable[[], Prepared], *, timeout: float
) -> Outcome[Any]:
    """Give a checkpoint back on all ranks, step by step as long as none has failed on any.

    Args:
        communicator: of the ranks.
        prepare: checks what can be checked without a change.
        timeout: seconds to wait for the slowest rank in each step.

    Raises:
        DeadlineError: some ranks did not come; the message names them.
    """
    prepared: list[Prepared] = []

    def begin() -> bool:
        prepared.append(prepare())
        return prepared[0].reads

    outcome: Outcome[Any] = on_all_ranks(communicator, begin, timeout=timeout)
    if not outcome.failures and any(outcome.results):
        outcome = on_all_ranks(communicator, prepared[0].read, timeout=timeout)
    if not outcome.failures:
        outcome = on_all_ranks(communicator, prepared[0].apply, timeout=timeout)
    return outcome
