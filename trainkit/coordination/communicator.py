"""Barriers and small objects among ranks, with deadlines that name who is missing."""

import logging
import pickle
from typing import Any

from trainkit.coordination.store import MemoryStore, PrefixedStore, Store
from trainkit.errors import DeadlineError
from trainkit.waiting import Deadline

__all__ = ["Communicator"]

log = logging.getLogger(__name__)

_NOTICE = 10.0
"""Seconds of quiet waiting; then the log says who is missing, at doubling distances."""

_SLICE = 1.0
"""Seconds of one wait for the store's answer, which keeps its connection from others."""


class Communicator:
    """The control plane of a job: every call is made by every rank, in the same order.

    It works over a ``Store`` and not over a process group, so it cannot deadlock with
    collectives that are under way, and works under every framework.
    """

    def __init__(self, store: Store, rank: int, world_size: int, *, timeout: float = 600.0) -> None:
        """Join ``world_size`` ranks that share ``store``.

        Args:
            store: shared by all ranks, empty of an earlier world's keys.
            rank: of this process.
            world_size: number of ranks.
            timeout: seconds each call waits at most, unless it says otherwise.
        """
        self.rank = rank
        self.world_size = world_size
        self.timeout = timeout
        self._store = store
        self._calls = 0

    @classmethod
    def solo(cls) -> "Communicator":
        """A communicator of one rank."""
        return cls(MemoryStore(), 0, 1)

    @property
    def store(self) -> Store:
        """The store beneath, for messages that are no collective calls."""
        return self._store

    def named(self, name: str) -> "Communicator":
        """A communicator of the same ranks with calls of its own, for another thread."""
        store = PrefixedStore(f"named/{name}", self._store)
        return Communicator(store, self.rank, self.world_size, timeout=self.timeout)

    def barrier(self, name: str = "barrier", *, timeout: float | None = None) -> None:
        """Wait until every rank is here.

        Args:
            name: what the ranks are doing, for the message.
            timeout: seconds at most; the communicator's own by default.

        Raises:
            DeadlineError: some ranks did not come; the message names them.
        """
        self._exchange(name, None, timeout)

    def broadcast_object(self, value: Any, *, src: int = 0, timeout: float | None = None) -> Any:
        """Give the object of rank ``src`` to all ranks.

        Raises:
            DeadlineError: some ranks did not come; the message names them.
        """
        own = value if self.rank == src else None
        gathered = self._exchange(f"broadcast from rank {src}", own, timeout, only=src)
        return gathered[src]

    def all_gather_object(self, value: Any, *, timeout: float | None = None) -> list[Any]:
        """Give the objects of all ranks to all ranks, in the order of ranks.

        Raises:
            DeadlineError: some ranks did not come; the message names them.
        """
        gathered = self._exchange("gathering", value, timeout)
        return [gathered[rank] for rank in range(self.world_size)]

    def _exchange(
        self, name: str, value: Any, timeout: float | None, only: int | None = None
    ) -> dict[int, Any]:
        """Publish ``value``, wait for everybody, and read what was asked for."""
        if self.world_size == 1:
            return {self.rank: value}
        self._calls += 1
        call = f"call/{self._calls}"
        self._store.set(f"{call}/rank/{self.rank}", pickle.dumps(value))
        if self._store.add(f"{call}/arrived", 1) == self.world_size:
            self._store.set(f"{call}/complete", b"1")
        self._await_all(call, name, Deadline(self.timeout if timeout is None else timeout))
        wanted = range(self.world_size) if only is None else (only,)
        values = {rank: self._read(f"{call}/rank/{rank}") for rank in wanted}
        if self._store.add(f"{call}/read", 1) == self.world_size:
            self._forget(call)
        return values

    def _read(self, key: str) -> Any:
        payload = self._store.get(key)
        if payload is None:
            raise AssertionError(f"{key} was published and is gone")  # a bug of ours, not a fault
        # The store holds what ranks of this very job wrote a moment ago, no stored data.
        return pickle.loads(payload)  # noqa: S301

    def _await_all(self, call: str, name: str, deadline: Deadline) -> None:
        notice = _NOTICE
        while not self._store.wait(f"{call}/complete", min(_SLICE, max(deadline.left, 0.01))):
            if deadline.elapsed < notice and not deadline.passed:
                continue
            notice *= 2
            missing = ", ".join(str(rank) for rank in self._missing(call))
            where = f"{name}: rank {self.rank} waits for rank(s) {missing} of {self.world_size}"
            if deadline.passed:
                raise DeadlineError(
                    f"{where}, and they did not come within {deadline.seconds:.0f} s. Look at "
                    f"the log of the missing rank(s) for the first error."
                )
            log.warning("%s since %.0f s", where, deadline.elapsed)

    def _missing(self, call: str) -> list[int]:
        here = self._store.get
        return [r for r in range(self.world_size) if here(f"{call}/rank/{r}") is None]

    def _forget(self, call: str) -> None:
        """Remove the keys of a call that everybody has read, so that a store does not grow."""
        for rank in range(self.world_size):
            self._store.delete(f"{call}/rank/{rank}")
        for part in ("arrived", "complete", "read"):
            self._store.delete(f"{call}/{part}")
