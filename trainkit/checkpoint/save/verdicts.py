"""What ranks tell one another about a save, through the store of their communicator."""

import json
from dataclasses import asdict

from trainkit.checkpoint.failure import Failure
from trainkit.coordination import Store

__all__ = ["Verdicts"]


class Verdicts:
    """Messages about saves, by the number of the attempt; no call waits for longer than it says.

    Other ranks tell rank 0 of their failures, and rank 0 tells them what came of the save.
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        """Use ``store`` for messages about saves to one root.

        Args:
            store: of these ranks, for nothing else.
            rank: of this process.
            world_size: number of ranks that save together.
        """
        self._store = store
        self._rank = rank
        self._world_size = world_size

    def accuse(self, attempt: int, failure: Failure) -> None:
        """Tell rank 0 that this rank has failed."""
        if self._rank != 0:
            self._store.set(f"{attempt}/failed", _packed(failure))

    def failed(self, attempt: int) -> Failure | None:
        """What another rank says has failed."""
        if self._world_size == 1:
            return None
        told = self._store.get(f"{attempt}/failed")
        return None if told is None else _unpacked(told)

    def pronounce(self, attempt: int, outcome: Failure | None) -> None:
        """Rank 0: tell the others that it is committed, or why not."""
        if self._world_size == 1:
            return
        self._store.set(f"{attempt}/outcome", b"" if outcome is None else _packed(outcome))
        if outcome is None:  # every rank has written, so each has read how the one before ended
            self._store.delete(f"{attempt - 1}/outcome")
            self._store.delete(f"{attempt - 1}/failed")

    def heard(self, attempt: int, seconds: float) -> bool:
        """Other ranks: whether rank 0 has told the outcome, after at most so many seconds."""
        return self._store.wait(f"{attempt}/outcome", seconds)

    def outcome(self, attempt: int) -> Failure | None:
        """Other ranks: the outcome that was heard; None: it is committed."""
        told = self._store.get(f"{attempt}/outcome")
        return _unpacked(told) if told else None

    def vouch(self, attempt: int, division: str) -> None:
        """Tell rank 0 that this rank has done all, where rank 0 cannot see that in the storage.

        Args:
            attempt: to save.
            division: checksum of how tensors were divided; the same on all ranks.
        """
        self._store.set(f"{attempt}/done/{self._rank}", division.encode())

    def vouched(self, attempt: int) -> dict[int, str]:
        """Rank 0: the divisions of the other ranks that have done all."""
        told = {r: self._store.get(f"{attempt}/done/{r}") for r in range(1, self._world_size)}
        return {rank: data.decode() for rank, data in told.items() if data is not None}

    def forget_vouched(self, attempt: int) -> None:
        """Rank 0: remove what they told, once all have."""
        for rank in range(1, self._world_size):
            self._store.delete(f"{attempt}/done/{rank}")


def _packed(failure: Failure) -> bytes:
    return json.dumps(asdict(failure)).encode()


def _unpacked(data: bytes) -> Failure:
    return Failure(**json.loads(data))
