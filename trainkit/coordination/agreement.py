"""All ranks stop at one step, though each may be a step ahead of another.

The first rank that hears of a notice raises ``hold``. Every rank then publishes the last step
that it has *entered*, and the highest of them is the step after which all stop. "My own step
plus one" would be wrong: hosts run ahead of their devices and of each other, and a rank that
waits for the rest before a step which others have entered leaves them in a collective.
"""

import logging

from trainkit.coordination.store import Store
from trainkit.waiting import Deadline, wait_until

__all__ = ["StepAgreement"]

log = logging.getLogger(__name__)


class StepAgreement:
    """One decision among ranks: after which step to stop.

    A watching thread looks whether a rank has asked to stop (``asked``). If so, it first makes
    the training thread call ``reached`` after each step, and only then publishes the step that
    the training thread has entered (``publish``). Until then a step costs nothing here.
    """

    left: tuple[int, ...] = ()
    """Ranks that ended at once, known when ``reached`` returns True: nothing can be done by all
    ranks together any more."""

    def __init__(self, store: Store, rank: int, world_size: int, *, timeout: float) -> None:
        """Take part in an agreement among ``world_size`` ranks.

        Args:
            store: shared by the ranks; a connection of its own, since both threads use it.
            rank: of this process.
            world_size: number of ranks.
            timeout: seconds to wait for the other ranks' steps.
        """
        self._store = store
        self._rank = rank
        self._world_size = world_size
        self._timeout = timeout
        self._target: int | None = None

    def propose(self) -> None:
        """Ask all ranks to stop; from any thread, any number of times."""
        self._store.set("hold", b"1")

    def asked(self) -> bool:
        """Whether a rank has asked to stop."""
        return self._store.get("hold") is not None

    def publish(self, entered: int) -> None:
        """Say that this rank has entered the step ``entered``, and no further one."""
        self._store.set(f"entered/{self._rank}", str(entered).encode())
        # The last one reads what all have said, so that all together ask little of the store.
        if self._store.add("answers", 1) >= self._world_size and not self._missing():
            told = [self._store.get(f"entered/{rank}") for rank in range(self._world_size)]
            highest = max(int(value) for value in told if value is not None)
            self._store.set("target", str(highest).encode())

    def leave(self) -> None:
        """Say that this rank ends at once, whatever it has published."""
        self._store.set(f"left/{self._rank}", b"1")
        self._store.set("left", b"1")

    def reached(self, step: int) -> bool:
        """Whether to stop now, after ``step``; the same answer at the same step on all ranks.

        If ranks have ``left``, at once, wherever each of the others is. Called once this rank has
        published, or is about to.

        Raises:
            DeadlineError: some ranks did not publish their step; the message names them.
        """
        if self._target is None:
            self._target = self._agree(step)
        if self._store.get("left") is None:
            return step >= self._target
        ranks = range(self._world_size)
        self.left = tuple(r for r in ranks if self._store.get(f"left/{r}") is not None)
        return True

    def _agree(self, step: int) -> int:
        wait_until(
            lambda: self._store.get("left") or self._store.get("target"),
            what=f"the ranks' steps, to stop together (rank {self._rank})",
            whom=lambda: "missing: rank " + self._missing_names(),
            deadline=Deadline(self._timeout),
        )
        target = self._store.get("target")
        if target is None:
            return step
        log.info("all ranks stop after step %d", max(int(target), step))
        return int(target)

    def _missing_names(self) -> str:
        names = ", ".join(str(rank) for rank in self._missing())
        return names or "that answered last, and ended before it told the highest step"

    def _missing(self) -> list[int]:
        ranks = range(self._world_size)
        return [rank for rank in ranks if self._store.get(f"entered/{rank}") is None]
