"""All-reduce by the fastest way that a group has: shared memory within a host, MPI beyond."""

import logging
from collections.abc import Callable, Sequence

import torch

from trainkit.strategies.mpi.channel import HostChannel
from trainkit.strategies.torch.mpi.host_reduce import HostReducer
from trainkit.strategies.torch.mpi.options import MpiOptions
from trainkit.strategies.torch.mpi.wire import Wire

__all__ = ["Reducing"]

log = logging.getLogger(__name__)


class Reducing:
    """Finds out at its first call who is on which host; used by the communication thread."""

    def __init__(
        self,
        wire: Wire,
        ranks: Sequence[int],
        options: MpiOptions,
        meanwhile: Callable[[], bool],
    ) -> None:
        """Reduce over ``wire``.

        Args:
            wire: of the group.
            ranks: of ``wire``, as the job counts them.
            options: of the group.
            meanwhile: see ``HostChannel``.
        """
        self._wire = wire
        self._ranks = tuple(ranks)
        self._options = options
        self._meanwhile = meanwhile
        self._host: HostReducer | None = None
        self._looked = not options.shared_memory
        self._warned = False

    def all_reduce(self, flat: torch.Tensor, op: str, *, keep: bool = False) -> None:
        """Reduce ``flat`` [n], contiguous, in place.

        Args:
            flat: the same on all ranks, but for its values.
            op: one of ``wire.OPS``.
            keep: it is reduced again and again, as DDP's buckets are: its storage moves into
                memory that the host's ranks share, where it is reduced without being copied.
        """
        if not self._looked:
            self._looked = True
            self._host = self._open()
        if self._host is None or not self._host.takes(flat):
            self._wire.all_reduce(flat, op)
            return
        if keep:
            self._keep(self._host, flat)
        self._host.all_reduce(flat, op)

    def _keep(self, host: HostReducer, flat: torch.Tensor) -> None:
        if host.memory.share(flat) or self._warned:
            return
        self._warned = True
        log.warning(
            "no room for %.0f MB of gradients in /dev/shm, so they are copied on their way to the "
            "other ranks of this host. Mount an emptyDir with medium: Memory there.",
            flat.nbytes / 1e6,
        )

    def close(self) -> None:
        """Hang up."""
        if self._host is not None:
            self._host.close()
            self._host = None

    def _open(self) -> HostReducer | None:
        """Collective over the group."""
        from mpi4py import MPI

        comm, width = self._wire.comm, self._options.ranks_per_host
        if width is None:
            local = comm.Split_type(MPI.COMM_TYPE_SHARED)
        else:
            local = comm.Split(self._wire.rank // width, self._wire.rank)
        index, size = local.Get_rank(), local.Get_size()
        sizes = comm.allgather(size)
        smallest = min(sizes)
        if max(sizes) == 1:
            local.Free()
            return None
        many_hosts = size != self._wire.size
        cross = None
        if many_hosts:
            across = comm.Split(index if index < smallest else MPI.UNDEFINED, self._wire.rank)
            if across != MPI.COMM_NULL:
                cross = Wire(across)
        names = [f"rank {self._ranks[rank]}" for rank in local.allgather(self._wire.rank)]
        channel = HostChannel.open(local, names, self._options.timeout) if size > 1 else None
        local.Free()
        # A host on which ranks cannot reach each other takes all of them to MPI.
        reached = all(comm.allgather(channel is not None or size == 1))
        if not reached or smallest == 1:
            if not reached:
                log.warning(
                    "ranks of one host cannot open connections to each other there: all-reduce "
                    "goes through MPI alone"
                )
            if channel is not None:
                channel.close()
            return None
        if channel is None:
            raise AssertionError("a host of several ranks without a channel")
        channel.meanwhile = self._meanwhile
        return HostReducer(
            channel,
            world_size=self._wire.size,
            owners=smallest,
            cross=(cross.all_reduce if cross is not None else _nothing) if many_hosts else None,
        )


def _nothing(flat: torch.Tensor, op: str) -> None:
    """Of a rank that owns no part, on a host that has more ranks than another."""
    del flat, op
