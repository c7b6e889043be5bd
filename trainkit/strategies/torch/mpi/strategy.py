"""``strategy="mpi"`` for torch: DDP, FSDP2 and checkpoints over a process group on MPI."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from zlib import crc32

import torch
import torch.distributed as dist
from torch.distributed.constants import default_pg_timeout
from torch.nn.parallel import DistributedDataParallel

from trainkit import config
from trainkit.errors import StrategyError, UsageError
from trainkit.strategies.mpi.world import join_world
from trainkit.strategies.torch.ddp import DDP
from trainkit.strategies.torch.link import TorchLink
from trainkit.strategies.torch.mpi.devices import choose_transport
from trainkit.strategies.torch.mpi.group import BACKEND, MpiGroup
from trainkit.strategies.torch.mpi.hook import average, average_in_bf16
from trainkit.strategies.torch.mpi.options import MpiOptions
from trainkit.topology import Topology

__all__ = ["Mpi", "register_backend"]

log = logging.getLogger(__name__)

_ONE_BUCKET = 1024
"""MiB: nearly always all gradients. Where all ranks compute on the processors of one host there is
nobody to reduce the first ones meanwhile; to try takes caches and time from the backward pass."""
_WIRES = {"exact": average, "bf16": average_in_bf16}


class Mpi(DDP):
    """DDP, and whatever else uses torch's default process group, over MPI.

    At world size 1 there is nobody to talk to, and no MPI: it is ``ddp`` then.
    """

    name = "mpi"

    def __init__(
        self,
        *,
        precision: str | None = None,
        device: str = "auto",
        transport: str | None = None,
        wire: str = "exact",
        options: MpiOptions | None = None,
    ) -> None:
        """Prepare; see ``Single``.

        Args:
            precision: see ``Single``.
            device: see ``Single``.
            transport: of CUDA tensors: ``cuda-aware``, ``nccl`` or ``staged``; ``auto`` takes the
                first that works. TRAINKIT_MPI_TRANSPORT by default.
            wire: ``bf16`` sends gradients in half of the bytes; ``exact`` as they are.
            options: of the process groups; those that do for most.
        """
        super().__init__(precision=precision, device=device)
        if wire not in _WIRES:
            raise UsageError(f"wire={wire!r} is not known. Known: {', '.join(_WIRES)}.")
        self._transport = transport
        self._wire = wire
        self._options = options or MpiOptions()

    def connect(self, topology: Topology, timeout: float) -> None:
        """See ``Strategy.connect``: through MPI's world, which mpirun has made."""
        if topology.world_size == 1:
            super().connect(topology, timeout)
            return
        world = join_world(topology)
        self._take_device(topology)
        transport = choose_transport(
            self._transport or config.settings().mpi_transport, world, self._device
        )
        self.link = TorchLink.open(topology, timeout)
        self.communicator = self.link.communicator
        if self._device.type == "cpu" and topology.local_world_size == topology.world_size:
            self._bucket_cap_mb = _ONE_BUCKET
        options = replace(self._options, timeout=timeout, cuda_aware=transport == "cuda-aware")
        device = self._device if transport == "nccl" else None
        register_backend(world, options, nccl_device=device)
        dist.init_process_group(
            BACKEND,
            store=dist.PrefixStore(f"{self.link.prefix}/group", self.link.tcp),
            rank=self.communicator.rank,
            world_size=self.communicator.world_size,
            timeout=timedelta(seconds=timeout),
        )
        self.link.arrived()

    def setup(self, model: Any, **options: Any) -> Any:
        """See ``DDP.setup``; gradients are averaged in DDP's buckets, which ranks of a host share.

        Raises:
            StrategyError: the model has sparse gradients, which MPI does not add up.
        """
        sparse = [
            name
            for name, module in getattr(model, "named_modules", list)()
            if getattr(module, "sparse", False) is True
            and isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag)
        ]
        if sparse and self.communicator.world_size > 1:
            raise StrategyError(
                f"strategy='mpi' reduces dense gradients alone, and {', '.join(sparse)} has "
                f"sparse=True. Make it sparse=False, or use strategy='ddp'."
            )
        prepared = super().setup(model, **options)
        group = dist.group.WORLD
        if isinstance(prepared, DistributedDataParallel) and isinstance(group, MpiGroup):
            prepared.register_comm_hook(group, _WIRES[self._wire])
        return prepared


def register_backend(
    world: Any, options: MpiOptions, *, nccl_device: torch.device | None = None
) -> None:
    """Make ``mpi4py`` a backend of torch's, whose groups are parts of ``world``.

    Args:
        world: communicator over all ranks, in the order of torch's ranks; stays the caller's.
        options: of all groups.
        nccl_device: this rank's device, whose tensors are left to NCCL.
    """

    def create(given: Any, _: Any) -> MpiGroup:
        ranks: Sequence[int] = given.global_ranks_in_group or range(world.Get_size())
        everybody = len(ranks) == world.Get_size()
        # Collective over the members alone, who all create their groups in one order.
        tag = crc32(str(given.group_id).encode()) % 32749
        members = world.Get_group().Incl(list(ranks))
        comm = world.Dup() if everybody else world.Create_group(members, tag)
        nccl = None
        if nccl_device is not None:
            nccl = dist.ProcessGroupNCCL(
                dist.PrefixStore("nccl", given.store),
                given.group_rank,
                given.group_size,
                dist.ProcessGroupNCCL.Options(),
            )
        name = str(given.group_id)
        own = options
        if given.timeout not in (None, default_pg_timeout):  # torch's default is nobody's wish
            own = replace(options, timeout=given.timeout.total_seconds())
        return MpiGroup(comm, ranks, given.store, own, name=name, nccl=nccl)

    dist.Backend.register_backend(BACKEND, create, extended_api=True, devices=["cpu", "cuda"])
