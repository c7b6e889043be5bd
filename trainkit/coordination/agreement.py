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

    ``reached`` is called by the training thread after each step; ``look`` and ``propose`` by
    a watching thread. A quiet step costs one assignment and one branch, and no message.
    """

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
        self._entered = 0
        self._target: int | None = None
        self.held = False

    def propose(self) -> None:
        """Ask all ranks to stop; from any thread, any number of times."""
        self._store.set("hold", b"1")
        self.look()

    def look(self) -> bool:
        """See whether a rank has asked to stop, and publish this rank's step if so.

        Returns:
            True the first time that somebody has asked, False before and after.
        """
        if self.held or self._store.get("hold") is None:
            return False
        # Order matters: after this assignment the training thread enters no further step
        # without asking, so the step read below is the last one that it can have entered.
        self.held = True
        self._store.set(f"entered/{self._rank}", str(self._entered).encode())
        return True

    def reached(self, step: int) -> bool:
        """Whether to stop now, after ``step``; the same answer at the same step on all ranks.

        Raises:
            DeadlineError: some ranks did not publish their step; the message names them.
        """
        self._entered = step + 1
        if not self.held:
            return False
        if self._target is None:
            self._target = self._agree()
            log.info("all ranks stop after step %d", max(self._target, step))
        return step >= self._target

    def _agree(self) -> int:
        def missing() -> list[int]:
            ranks = range(self._world_size)
            return [r for r in ranks if self._store.get(f"entered/{r}") is None]

        wait_until(
            lambda: not missing(),
            what=f"the ranks' steps, to stop together (rank {self._rank})",
            whom=lambda: "missing: rank " + ", ".join(str(rank) for rank in missing()),
            deadline=Deadline(self._timeout),
        )
        published = (self._store.get(f"entered/{rank}") for rank in range(self._world_size))
        return max(int(value) for value in published if value is not None)
