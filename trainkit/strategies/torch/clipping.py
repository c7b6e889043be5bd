"""The norm of gradients of which each rank may have a part, and clipping by it."""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

__all__ = ["clip_sharded"]


@torch.no_grad()
def clip_sharded(parameters: Iterable[torch.Tensor], max_norm: float, mesh: Any) -> torch.Tensor:
    """Scale gradients so that their L2 norm over all ranks is ``max_norm`` at most.

    A sharded gradient counts with all its parts, whichever ranks hold them, and a plain one,
    which is the same on all ranks, once. torch's ``clip_grad_norm_`` cannot take both together,
    and gives a DTensor to whoever wants to print it.

    Args:
        parameters: with their gradients; those without one are passed over.
        max_norm: above 0; infinity only measures.
        mesh: over whose last dimension gradients are sharded. Every rank of it has to call.

    Returns:
        The norm before clipping, a plain tensor of no dimension, the same on all ranks.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    sharded = [grad.to_local() for grad in grads if isinstance(grad, DTensor)]
    plain = [grad for grad in grads if not isinstance(grad, DTensor)]
    device = torch.device(mesh.device_type)
    # In double, so that squares of large gradients in many parts stay finite.
    squared = get_total_norm([part for part in sharded if part.numel()]).to(device).double() ** 2
    dist.all_reduce(squared, group=mesh.get_group(mesh.ndim - 1))
    norm = (squared + get_total_norm(plain).to(device).double() ** 2).sqrt().float()
    if math.isfinite(max_norm):
        # A tensor: on a GPU nothing is read, so nothing waits.
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        if sharded:
            torch._foreach_mul_(sharded, scale)
        if plain:
            torch._foreach_mul_(plain, scale)
    return norm
