"""Copies of many of torch's tensors at a time."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from trainkit.checkpoint.save.arena import Arena

__all__ = ["copy_together", "current_gpu", "pin"]

log = logging.getLogger(__name__)


_TOLD_BYTES = 8 << 20
"""That are copied before somebody is told, so that whoever writes them need not wait for all."""

_JOINED_BYTES = 64 << 10
_FEWEST_JOINED = 4
"""Vectors up to so many bytes are joined, from so many in a row on."""

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


class _Group(NamedTuple):
    """Tensors that are copied before anybody is told."""

    joined: list[tuple[int, int, torch.Tensor]]
    """Runs of small tensors: the first, the one after the last, and the memory of all of them."""
    others: list[int]
    places: list[torch.Tensor]
    """Of the others."""
    end: int | None
    """Where the next group begins, if there is one."""


def copy_together(
    arena: Arena,
    tensors: list[tuple[int, torch.Tensor]],
    tell: Callable[[int], None] = lambda filled: None,
    layouts: Sequence[tuple[int, object]] = (),
) -> None:
    """Copy each tensor's elements, in the order of its own shape, to its place in the arena.

    Few calls for all: with thousands of small tensors the calls would cost more than the bytes.
    On return all copies are complete, from a GPU too.

    Args:
        arena: to copy to.
        tensors: each with the place where it begins, ascending.
        tell: called with the number of bytes that are there, if what lies between the tensors is.
        layouts: the same as in a call before only if places, types and shapes of all tensors are;
            none if that is not known.
    """
    sources = [tensor for _, tensor in tensors]
    devices = {tensor.device for tensor in sources if not tensor.is_cpu}
    known = [*layouts, bool(devices)]
    if arena.places is None or not layouts or arena.places[0] != known:
        with torch.inference_mode(False):  # or nobody could write to them outside of it
            arena.places = known, _planned(arena, tensors, join=not devices)
    groups: list[_Group] = arena.places[1]
    gpus = {device for device in devices if device.type == "cuda"}
    if gpus:
        pin(arena, torch.cuda.current_device())
    for group in groups:
        with torch.no_grad():
            for first, last, place in group.joined:
                torch.cat(sources[first:last], out=place)
            if group.others:
                # From GPUs on the current streams, so after all that training has asked for.
                others = [sources[number] for number in group.others]
                torch._foreach_copy_(group.places, others, non_blocking=bool(gpus))
        if group.end is not None and not gpus:
            tell(group.end)
    for gpu in gpus:
        torch.cuda.current_stream(gpu).synchronize()


def _planned(arena: Arena, tensors: list[tuple[int, torch.Tensor]], *, join: bool) -> list[_Group]:
    """How to copy ``tensors``.

    ``torch.cat`` takes half as long for each tensor as a copy of its own, but joins only vectors
    on one device that lie behind each other; and large ones are copied by several threads.
    """
    groups: list[_Group] = []
    runs: list[list[int]] = []
    started, reached, last_type = tensors[0][0], -1, None
    for number, (begin, tensor) in enumerate(tensors):
        if begin - started >= _TOLD_BYTES:
            groups.append(_group(arena, tensors, runs, end=begin))
            started, runs = begin, []
        size = tensor.numel() * tensor.element_size()
        joins = join and tensor.dim() == 1 and size <= _JOINED_BYTES
        if joins and runs and begin == reached and tensor.dtype == last_type:
            runs[-1].append(number)
        else:
            runs.append([number])
        reached, last_type = begin + size, tensor.dtype if joins else None
    return [*groups, _group(arena, tensors, runs, end=None)]


def _group(
    arena: Arena,
    tensors: list[tuple[int, torch.Tensor]],
    runs: list[list[int]],
    *,
    end: int | None,
) -> _Group:
    def place(run: Sequence[int]) -> torch.Tensor:
        (begin, first), count = tensors[run[0]], sum(tensors[n][1].numel() for n in run)
        if not count:
            return torch.empty(0, dtype=first.dtype, device="cpu")
        return torch.frombuffer(arena.memory, dtype=first.dtype, count=count, offset=begin)

    joined = [(run[0], run[-1] + 1, place(run)) for run in runs if len(run) >= _FEWEST_JOINED]
    others = [number for run in runs if len(run) < _FEWEST_JOINED for number in run]
    places = [place([number]).view(tensors[number][1].shape) for number in others]
    return _Group(joined, others, places, end)
