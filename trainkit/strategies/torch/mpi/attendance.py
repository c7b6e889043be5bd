"""How far each rank of a group is, so that a wait that is too long can say for whom."""

import contextlib
import threading
from collections.abc import Callable, Sequence

import torch.distributed as dist

__all__ = ["Attendance"]

_PATIENCE = 5.0
"""Seconds for the store to answer. Calls to it have no deadline where its rank hangs or its host
is cut off, and just then it is asked."""


class Attendance:
    """Counts of collectives begun, in the store of the group; used by one watching thread."""

    def __init__(
        self, store: dist.Store, rank: int, ranks: Sequence[int], *, patience: float = _PATIENCE
    ) -> None:
        """Count for ``rank``.

        Args:
            store: that the ranks of the group share.
            rank: in the group.
            ranks: of the group, as the job counts them.
            patience: seconds for the store to answer.
        """
        self._shared = store
        self._rank = rank
        self._ranks = tuple(ranks)
        self._patience = patience
        self._store: dist.Store | None = None
        self._asking: threading.Thread | None = None
        self._told = -1

    def tell(self, begun: int) -> None:
        """Write this rank's count, if it has changed."""
        if begun != self._told:
            self._ask(lambda: self._tell(begun))

    def behind(self, begun: int) -> str:
        """Ranks that have begun fewer collectives; empty if none is, or nobody knows."""
        found: list[str] = []
        if not self._ask(lambda: found.extend(self._behind(begun))):
            return "another rank (which one, the store of rank 0 does not answer)"
        return ", ".join(found)

    def _tell(self, begun: int) -> None:
        self._own().set(f"begun/{self._rank}", str(begun))
        self._told = begun

    def _behind(self, begun: int) -> list[str]:
        store, found = self._own(), []
        for index, rank in enumerate(self._ranks):
            key = f"begun/{index}"
            count = int(store.get(key)) if store.check([key]) else 0
            if index != self._rank and count < begun:
                found.append(f"rank {rank} (at collective {count}, this rank at {begun})")
        return found

    def _ask(self, question: Callable[[], None]) -> bool:
        """Whether ``question`` came back in time; it is not asked while one before it has not."""

        def ask() -> None:
            with contextlib.suppress(Exception):  # its loss is told by those who depend on it
                question()

        if self._asking is not None:
            self._asking.join(self._patience)
            if self._asking.is_alive():
                return False
        self._asking = threading.Thread(target=ask, name="trainkit-mpi-ask", daemon=True)
        self._asking.start()
        self._asking.join(self._patience)
        return not self._asking.is_alive()

    def _own(self) -> dist.Store:
        """A connection of its own: one that another thread waits on serves nobody else."""
        if self._store is None:
            self._store = self._shared.clone()
        return self._store
