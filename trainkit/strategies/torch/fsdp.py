"""Fully sharded data parallel: every rank holds a part of each weight, gradient and moment."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from trainkit.errors import StrategyError, UsageError
from trainkit.strategies.torch.activation_checkpointing import checkpoint_activations
from trainkit.strategies.torch.blocks import find_blocks
from trainkit.strategies.torch.clipping import clip_sharded
from trainkit.strategies.torch.ddp import DDP
from trainkit.strategies.torch.precision import dtype_of
from trainkit.strategies.torch.sharding import refuse_what_cannot_be_sharded, shard
from trainkit.topology import Topology

__all__ = ["FSDP"]

log = logging.getLogger(__name__)


class FSDP(DDP):
    """torch's FSDP2 (``fully_shard``).

    A block's weights are gathered before it runs and let go afterwards; gradients are averaged
    into the parts that each rank holds. It trains what DDP trains, to the order of additions,
    with parameters, gradients and moments divided by the number of ranks.

    Sources: Zhao et al., PyTorch FSDP (arXiv 2304.11277); Rajbhandari et al., ZeRO (arXiv
    1910.02054), stage 3.
    """

    name = "fsdp"

    def __init__(
        self,
        *,
        precision: str | None = None,
        device: str = "auto",
        replicas: int = 1,
        reshard_after_forward: bool = True,
    ) -> None:
        """Prepare.

        Args:
            precision: ``fp32`` (default), or ``bf16``: blocks compute and weights are sent in
                bf16; parameters, moments and the sums of gradients stay in fp32.
            device: see ``Single``.
            replicas: copies of the model, each sharded over ``world_size / replicas`` ranks
                (hybrid sharding): fewer ranks have to be waited for in each block.
            reshard_after_forward: False keeps whole weights from the forward to the backward
                pass (ZeRO-2): less to send, more to hold.

        Raises:
            UsageError: an unknown precision, or ``replicas`` below 1.
        """
        super().__init__(precision=precision, device=device)
        dtype = dtype_of(precision)
        self._policy = MixedPrecisionPolicy(
            param_dtype=dtype,
            reduce_dtype=None if dtype is None else torch.float32,
            output_dtype=None if dtype is None else torch.float32,
        )
        if replicas < 1:
            raise UsageError(f"FSDP(replicas={replicas}): expected 1 or more")
        self._replicas = replicas
        self._reshard_after_forward = reshard_after_forward
        self._mesh: Any = None

    def connect(self, topology: Topology, timeout: float) -> None:
        """See ``Strategy.connect``; NCCL among GPUs, gloo among CPUs.

        Raises:
            StrategyError: the ranks do not divide by ``replicas``.
        """
        world_size = topology.world_size or 1
        if world_size % self._replicas:
            raise StrategyError(
                f"FSDP(replicas={self._replicas}): {world_size} rank(s) do not divide by it"
            )
        super().connect(topology, timeout)
        shape: tuple[int, ...] = (world_size,)
        names: tuple[str, ...] = ("shard",)
        if self._replicas > 1:
            shape = (self._replicas, world_size // self._replicas)
            names = ("replicate", "shard")
        self._mesh = init_device_mesh(self._device.type, shape, mesh_dim_names=names)

    def setup(
        self,
        model: Any,
        *,
        blocks: Sequence[type | str] | None = None,
        activation_checkpointing: bool = False,
    ) -> Any:
        """Shard ``model`` in place, block by block; rank 0's values go to all ranks.

        Its parameters are others afterwards: an optimizer is made after this.

        Raises:
            StrategyError: the model cannot be sharded; see ``refuse_what_cannot_be_sharded``.
        """
        if not isinstance(model, torch.nn.Module):
            raise StrategyError(f"ctx.setup() takes a torch.nn.Module, not {type(model).__name__}")
        found = find_blocks(model, blocks)
        refuse_what_cannot_be_sharded(model, found, self.communicator)
        if activation_checkpointing:
            checkpoint_activations(model, found)
        if self.communicator.rank == 0:
            _introduce(model, found, self._mesh.size() // self._replicas)
        shard(
            model,
            found,
            mesh=self._mesh,
            device=self._device,
            policy=self._policy,
            reshard_after_forward=self._reshard_after_forward,
        )
        return model

    def all_reduce(self, value: Any, op: str) -> Any:
        """See ``Strategy.all_reduce``.

        Raises:
            StrategyError: ``value`` is sharded, so that ranks hold different elements of it.
        """
        if isinstance(value, DTensor):
            raise StrategyError(
                "ctx.all_reduce() combines values that each rank has; a sharded tensor is one "
                "value over all ranks already. value.full_tensor() gives it whole."
            )
        return super().all_reduce(value, op)

    def clip_grad_norm(self, model: Any, max_norm: float) -> torch.Tensor:
        """See ``Strategy.clip_grad_norm``: the norm is that of all ranks' parts."""
        return clip_sharded(model.parameters(), max_norm, self._mesh)

    @contextmanager
    def no_sync(self, model: Any) -> Iterator[None]:
        """See ``Strategy.no_sync``; whole gradients are held meanwhile, unsharded."""
        if not isinstance(model, FSDPModule):
            yield
            return
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    @property
    def native(self) -> Any:
        """torch's ``DeviceMesh`` over which models are sharded."""
        return self._mesh


def _introduce(model: torch.nn.Module, blocks: list[Any], num_ranks: int) -> None:
    elements = sum(parameter.numel() for parameter in model.parameters())
    if not blocks:
        log.info(
            "fsdp: %s has no repeated blocks, so its %d parameters are gathered all at once; "
            "ctx.setup(model, blocks=[…]) names what to gather one at a time",
            type(model).__name__,
            elements,
        )
        return
    kinds = sorted({type(block).__name__ for _, block in blocks})
    log.info(
        "fsdp: %d parameters in %d blocks (%s), sharded over %d rank(s)",
        elements,
        len(blocks),
        ", ".join(kinds),
        num_ranks,
    )
