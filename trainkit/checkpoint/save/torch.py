"""Copies of many of torch's tensors at a time."""

import torch

from trainkit.checkpoint.save.arena import Arena

__all__ = ["copy_together"]


def copy_together(arena: Arena, tensors: list[tuple[int, torch.Tensor]]) -> None:
    """Copy each tensor's elements, in the order of its own shape, to its place in the arena.

    One call for all: with thousands of small tensors the calls would cost more than the bytes.
    On return all copies are complete, from a GPU too.
    """
    layout = [(begin, tensor.dtype, tensor.shape) for begin, tensor in tensors]
    if arena.places is None or arena.places[0] != layout:
        memory = arena.memory
        places = [
            torch.frombuffer(memory, dtype=dtype, count=shape.numel(), offset=begin).view(shape)
            for begin, dtype, shape in layout
        ]
        arena.places = layout, places
    with torch.no_grad():
        torch._foreach_copy_(arena.places[1], [tensor for _, tensor in tensors])
