"""The control plane of workers that come and go, through the first server."""

import json
from typing import Any

from trainkit.coordination import Communicator, MemoryStore
from trainkit.errors import PeerLostError, StrategyError
from trainkit.strategies.torch.local_sgd.worker import OuterWorker

__all__ = ["WorkerCommunicator"]


class WorkerCommunicator(Communicator):
    """As ``Communicator``, among the workers that are there: who goes away is not waited for.

    Values travel as JSON, since nothing that comes over the network is unpickled here.
    """

    def __init__(self, worker: OuterWorker, *, timeout: float) -> None:
        super().__init__(MemoryStore(), worker.rank, worker.world_size, timeout=timeout)
        self._worker = worker

    def named(self, name: str) -> Communicator:
        """Not here: calls are made from one thread."""
        raise StrategyError(f"communicator.named({name!r}) is not there under parameter servers")

    def broadcast_object(self, value: Any, *, src: int = 0, timeout: float | None = None) -> Any:
        """See ``Communicator.broadcast_object``; of plain values.

        Raises:
            PeerLostError: ``src`` is not there.
            StrategyError: JSON cannot hold ``value``.
        """
        gathered = self._exchange("broadcast_object", value if self.rank == src else None, timeout)
        if src not in gathered:
            raise PeerLostError(
                f"broadcast_object(src={src}): worker {src} is not there; there are worker(s) "
                f"{', '.join(map(str, gathered))}"
            )
        return gathered[src]

    def all_gather_object(self, value: Any, *, timeout: float | None = None) -> list[Any]:
        """The values of all workers that are there, in the order of ranks."""
        return [*self._exchange("all_gather_object", value, timeout).values()]

    def _exchange(
        self, name: str, value: Any, timeout: float | None, only: int | None = None
    ) -> dict[int, Any]:
        if self.world_size == 1:
            return {self.rank: value}
        text = _encoded(value)
        given = self._worker.gather(name, memoryview(text), timeout)
        return {rank: json.loads(bytes(data)) for rank, data in given.items()}


def _encoded(value: Any) -> bytes:
    try:
        text = json.dumps(value)
        same = json.loads(text) == value
    except (TypeError, ValueError):
        same = False
    if not same:
        raise StrategyError(
            f"under parameter servers workers exchange plain values (numbers, texts, lists, "
            f"dictionaries with texts as keys), and this {type(value).__name__} is none: "
            f"{repr(value)[:80]}"
        )
    return text.encode()
