"""How far each rank of a group is, so that a wait that is too long can say for whom."""

import contextlib
from collections.abc import Sequence

import torch.distributed as dist

__all__ = ["Attendance"]


class Attendance:
    """Counts of collectives begun, in the store of the group; used by one watching thread."""

    def __init__(self, store: dist.Store, rank: int, ranks: Sequence[int]) -> None:
        """Count for ``rank``.

        Args:
            store: that the ranks of the group share.
            rank: in the group.
            ranks: of the group, as the job counts them.
        """
        self._shared = store
        self._rank = rank
        self._ranks = tuple(ranks)
        self._store: dist.Store | None = None
        self._told = -1

    def tell(self, begun: int) -> None:
        """Write this rank's count, if it has changed."""
        if begun == self._told:
            return
        with contextlib.suppress(Exception):  # its loss is told by those who depend on it
            self._own().set(f"begun/{self._rank}", str(begun))
            self._told = begun

    def behind(self, begun: int) -> str:
        """Ranks that have begun fewer collectives; empty if none is, or nobody knows."""
        found = []
        with contextlib.suppress(Exception):
            store = self._own()
            for index, rank in enumerate(self._ranks):
                key = f"begun/{index}"
                count = int(store.get(key)) if store.check([key]) else 0
                if index != self._rank and count < begun:
                    found.append(f"rank {rank} (at collective {count}, this rank at {begun})")
        return ", ".join(found)

    def _own(self) -> dist.Store:
        """A connection of its own: one that another thread waits on serves nobody else."""
        if self._store is None:
            self._store = self._shared.clone()
        return self._store
