"""``strategy="mpi"`` without torch: topology, agreement and MPI's collectives for numpy and others.

Also for scripts that train with XGBoost or TensorFlow by themselves under mpirun: it adds up and
gathers, and knows nothing of their models.
"""

from typing import Any

from trainkit.errors import StrategyError
from trainkit.strategies.mpi.world import join_world, leave_world
from trainkit.strategies.plain import Plain
from trainkit.topology import Topology

__all__ = ["PlainMpi"]

_OPS = {"sum": "SUM", "mean": "SUM", "min": "MIN", "max": "MAX"}


class PlainMpi(Plain):
    """Ranks of mpirun that share numbers and arrays; ``ctx.native`` is mpi4py's communicator."""

    name = "mpi"

    def __init__(self) -> None:
        super().__init__()
        self._world: Any = None

    def connect(self, topology: Topology, timeout: float) -> None:
        """See ``Strategy.connect``."""
        if topology.world_size != 1:
            self._world = join_world(topology)
        super().connect(topology, timeout)

    @property
    def native(self) -> Any:
        """An ``mpi4py.MPI.Intracomm`` over all ranks, this job's alone; None at world size 1."""
        return self._world

    def setup(self, model: Any) -> Any:
        """There is no model here."""
        raise StrategyError(
            f"ctx.setup() needs torch, and strategy='mpi' runs without it here: it was given a "
            f"{type(model).__name__}. Use ctx.shard(items) to divide work, ctx.all_reduce() and "
            f"ctx.native (mpi4py's communicator) to combine it; or strategy='torch:mpi' for a "
            f"torch model in a script that imports torch elsewhere."
        )

    def all_reduce(self, value: Any, op: str) -> Any:
        """Combine a number, or a numpy array, element by element, over all ranks.

        Arrays go through MPI as they are, in their dtype; a mean is of floats. ``value`` stays.
        """
        if self._world is None:
            return value
        from mpi4py import MPI

        combine = getattr(MPI, _OPS[op])
        if not hasattr(value, "__array_interface__"):
            total = self._world.allreduce(value, combine)
            return total / self._world.Get_size() if op == "mean" else total
        import numpy

        source = numpy.ascontiguousarray(value)
        result = numpy.empty_like(source)
        self._world.Allreduce(source, result, combine)
        if op == "mean":
            result = result / self._world.Get_size()
        return result.reshape(value.shape)

    def close(self, *, failed: bool = False) -> None:
        """See ``Strategy.close``."""
        if self._world is not None and not failed:
            leave_world(self._world)
        super().close(failed=failed)
