"""Copies of many of torch's tensors at a time."""

import contextlib
import logging
import sys
from collections.abc import Callable

import torch

from trainkit.checkpoint.save.arena import Arena

__all__ = ["copy_together", "current_gpu", "pin"]

log = logging.getLogger(__name__)


_TOLD_BYTES = 16 << 20
"""That are copied by one call, so that whoever writes them need not wait for all."""

_PORTABLE = 1
"""cudaHostRegisterPortable: pinned for every GPU."""


def current_gpu() -> int | None:
    """The GPU of the calling thread; None where this process uses none."""
    return torch.cuda.current_device() if torch.cuda.is_initialized() else None


def pin(arena: Arena, gpu: int) -> None:
    """Let GPUs write to the arena directly; takes a while for each gigabyte, and once.

    ``gpu`` is one that this process uses: each thread begins with the first, and to ask anything
    of another one costs some of its memory. Where that fails (``ulimit -l``, say), copies go
    through memory of the driver's, as they do without it: slower, and nothing else.
    """
    if arena.unpin is not None or arena.size == 0:
        return
    runtime = torch.cuda.cudart()
    address = torch.frombuffer(arena.memory, dtype=torch.uint8).data_ptr()
    with torch.cuda.device(gpu):
        try:
            torch.cuda.check_error(runtime.cudaHostRegister(address, arena.size, _PORTABLE))
        except RuntimeError as error:
            text = "checkpoints leave the GPU by a detour, since memory is not pinned: %s"
            log.warning(text, error)
            arena.unpin = lambda: None
            with contextlib.suppress(RuntimeError):  # CUDA remembers the error until it is asked
                torch.zeros(1, device="cuda")
            return
    arena.unpin = lambda: runtime.cudaHostUnregister(address)


def copy_together(
    arena: Arena,
    tensors: list[tuple[int, torch.Tensor]],
    tell: Callable[[int], None] = lambda filled: None,
) -> None:
    """Copy each tensor's elements, in the order of its own shape, to its place in the arena.

    Few calls for all: with thousands of small tensors the calls would cost more than the bytes.
    On return all copies are complete, from a GPU too.

    Args:
        arena: to copy to.
        tensors: each with the place where it begins, ascending.
        tell: called with the number of bytes that are there, if what lies between the tensors is.
    """
    layout = [(begin, tensor.dtype, tensor.shape) for begin, tensor in tensors]
    if arena.places is None or arena.places[0] != layout:
        memory = arena.memory
        places = [
            torch.frombuffer(memory, dtype=dtype, count=shape.numel(), offset=begin).view(shape)
            for begin, dtype, shape in layout
        ]
        arena.places = layout, places
    places, sources = arena.places[1], [tensor for _, tensor in tensors]
    gpus = {tensor.device for _, tensor in tensors if tensor.is_cuda}
    if gpus:
        pin(arena, torch.cuda.current_device())
        # On the current streams, so after all that training has asked for.
        with torch.no_grad():
            torch._foreach_copy_(places, sources, non_blocking=True)
        for gpu in gpus:
            torch.cuda.current_stream(gpu).synchronize()
        return
    first = 0
    for number, (begin, _, _) in enumerate([*layout[1:], (sys.maxsize, None, None)], start=1):
        if begin - layout[first][0] >= _TOLD_BYTES:
            with torch.no_grad():
                torch._foreach_copy_(places[first:number], sources[first:number])
            if number < len(layout):
                tell(begin)
            first = number
