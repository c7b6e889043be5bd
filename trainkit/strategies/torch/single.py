"""One rank: the model on its device, and nothing around it."""

from collections.abc import Sequence
from typing import Any

import torch

from trainkit import config
from trainkit.coordination import Communicator
from trainkit.errors import StrategyError
from trainkit.strategies.base import Strategy
from trainkit.strategies.torch.activation_checkpointing import checkpoint_activations
from trainkit.strategies.torch.blocks import find_blocks
from trainkit.strategies.torch.device import choose_device, limit_threads
from trainkit.strategies.torch.precision import apply_precision
from trainkit.topology import Topology

__all__ = ["Single"]


class Single(Strategy):
    """torch on one device, with no process group and no wrapper."""

    framework = "torch"
    name = "single"
    setup_options = frozenset({"blocks", "activation_checkpointing"})

    def __init__(self, *, precision: str | None = None, device: str = "auto") -> None:
        """Prepare.

        Args:
            precision: ``fp32`` (default) or ``bf16``.
            device: ``cpu`` or ``cuda``; ``auto`` leaves it to TRAINKIT_DEVICE, and to what
                there is.
        """
        self._precision = precision
        self._request = device
        self._device = torch.device("cpu")

    def connect(self, topology: Topology, timeout: float) -> None:
        """See ``Strategy.connect``; refuses a world of more than one rank."""
        del timeout
        if topology.world_size != 1:
            raise StrategyError(
                f"strategy='single' in a job of {topology.world_size} ranks would train "
                f"{topology.world_size} times alone. Use strategy='ddp' or 'auto'."
            )
        self._take_device(topology)
        self.communicator = Communicator.solo()

    def _take_device(self, topology: Topology) -> None:
        local_rank = topology.local_rank or 0
        request = config.settings().device if self._request == "auto" else self._request
        self._device = choose_device(local_rank, topology.local_world_size, request=request)
        limit_threads(topology.local_world_size)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        return self._device

    def setup(
        self,
        model: Any,
        *,
        blocks: Sequence[type | str] | None = None,
        activation_checkpointing: bool = False,
    ) -> Any:
        """Move ``model`` (a Module) to the device, in the precision asked for."""
        if not isinstance(model, torch.nn.Module):
            raise StrategyError(f"ctx.setup() takes a torch.nn.Module, not {type(model).__name__}")
        if blocks is not None or activation_checkpointing:
            found = find_blocks(model, blocks)  # wrong names are an error here as elsewhere
            if activation_checkpointing:
                checkpoint_activations(model, found)
        model = model.to(self._device)
        apply_precision(model, self._precision, self._device.type)
        return model

    def all_reduce(self, value: Any, op: str) -> Any:
        """See ``Strategy.all_reduce``: of one rank it is the value itself."""
        del op
        return value

    def clip_grad_norm(self, model: Any, max_norm: float) -> torch.Tensor:
        """See ``Strategy.clip_grad_norm``: all ranks have the same gradients."""
        return torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)

    def seed(self, seed: int) -> None:
        """Seed torch on all devices."""
        torch.manual_seed(seed)

    def close(self, *, failed: bool = False) -> None:
        """See ``Strategy.close``; there is nobody to leave."""
        del failed
