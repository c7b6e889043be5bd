"""No framework: topology, communicator and checkpoints for numpy and the like."""

from collections.abc import Callable
from typing import Any

from trainkit.coordination import Communicator, Store
from trainkit.errors import StrategyError
from trainkit.strategies.base import Strategy
from trainkit.strategies.link import RankLink
from trainkit.topology import Topology

__all__ = ["Plain"]

_REDUCE: dict[str, Callable[[list[Any]], Any]] = {
    "sum": sum,
    "min": min,
    "max": max,
    "mean": lambda values: sum(values) / len(values),
}


class Plain(Strategy):
    """Ranks that share a store and no tensors."""

    framework = "plain"
    name = "plain"

    def __init__(self) -> None:
        self._link: RankLink | None = None

    def connect(self, topology: Topology, timeout: float) -> None:
        """See ``Strategy.connect``."""
        if topology.world_size == 1:
            self.communicator = Communicator.solo()
            return
        self._link = RankLink.open(topology, timeout)
        self.communicator = self._link.communicator

    def watch_store(self) -> Store:
        """See ``Strategy.watch_store``."""
        if self._link is None:
            return super().watch_store()
        return self._link.second_connection("watch")

    @property
    def device(self) -> str:
        """Always ``cpu``."""
        return "cpu"

    def setup(self, model: Any) -> Any:
        """There is no model here."""
        raise StrategyError(
            "ctx.setup() needs a framework, and the main module names none. Use ctx.shard(items) "
            "to divide work over ranks."
        )

    def all_reduce(self, value: Any, op: str) -> Any:
        """Combine numbers, or anything that adds and compares, over all ranks."""
        return _REDUCE[op](self.communicator.all_gather_object(value))

    def close(self, *, failed: bool = False) -> None:
        """See ``Strategy.close``."""
        if self._link is not None:
            self._link.close(failed=failed)
