"""Activations of a block that are computed again in the backward pass, and not kept until then."""

from collections.abc import Callable
from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from trainkit.errors import StrategyError
from trainkit.strategies.torch.blocks import outermost

__all__ = ["checkpoint_activations"]


def checkpoint_activations(
    model: torch.nn.Module, blocks: list[tuple[str, torch.nn.Module]]
) -> None:
    """Keep of each block's forward pass its inputs alone; compute the rest again when needed.

    It takes about a third more computing and keeps a block's activations, in place of all
    blocks'. Gradients are the same: dropout and autocast are those of the first time. Names of
    parameters do not change.

    Source: Chen et al., Training Deep Nets with Sublinear Memory Cost (arXiv 1604.06174).

    Args:
        model: for the message.
        blocks: of ``model``, by name; one inside of another is computed again with it.

    Raises:
        StrategyError: there is no block.
    """
    if not blocks:
        raise StrategyError(
            f"activation_checkpointing=True: {type(model).__name__} has no repeated blocks to "
            f"compute again one at a time. Name their classes: ctx.setup(model, blocks=[Block])."
        )
    for _, block in outermost(blocks):
        if "forward" in vars(block):  # somebody replaced it before
            block.forward = _recomputing(block.forward)
        else:
            # Bound to the block, so that a deep copy of it runs its own weights.
            block.forward = MethodType(_recomputing(type(block).forward), block)


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
