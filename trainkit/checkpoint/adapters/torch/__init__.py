"""torch's objects in a checkpoint. Imported only where torch is there already, or where a
checkpoint holds its tensors."""

from typing import Any

from trainkit.checkpoint.adapters.base import StateAdapter

__all__ = ["adapter_for"]


def adapter_for(value: Any) -> StateAdapter | None:
    """The adapter for a module or an optimizer; None for any other object of torch."""
    import torch

    from trainkit.checkpoint.adapters.torch.modules import ModuleAdapter
    from trainkit.checkpoint.adapters.torch.optimizers import OptimizerAdapter

    if isinstance(value, torch.nn.Module):
        return ModuleAdapter()
    if isinstance(value, torch.optim.Optimizer):
        return OptimizerAdapter()
    return None
