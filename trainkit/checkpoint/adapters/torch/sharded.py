"""Tensors of which each rank has a part: DTensor, as FSDP2's ``fully_shard`` makes them.

What they are is the same on all ranks and lies with their entry; each rank's part lies with what
only this rank has. A restore reads of all parts what the run needs here, so that the number of
ranks may change, and a model saved whole may be restored sharded, or the other way.
"""

import sys
from collections.abc import Mapping
from typing import Any

import torch

from trainkit.checkpoint.adapters.base import Saved, Wanted
from trainkit.checkpoint.adapters.torch.tensors import BY_NAME, DTYPES, source
from trainkit.errors import CheckpointDamagedError, UsageError

__all__ = [
    "described",
    "gathered",
    "give_back_parts",
    "is_sharded",
    "like",
    "own_part",
    "stand_ins",
]


def is_sharded(value: Any) -> bool:
    """Whether ``value`` is a DTensor; nothing is imported to tell."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


def give_back_parts(module: torch.nn.Module) -> None:
    """Have an FSDP2 module hold its parts again where a forward pass has left weights whole.

    After an evaluation those of the outermost module stay whole until the next backward pass,
    and are no parameters that an optimizer knows.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        for child in module.modules():
            if isinstance(child, fsdp.FSDPModule):
                child.reshard()


def described(tensor: Any, where: str) -> dict[str, Any]:
    """Type and shape of the whole, as they are saved.

    Raises:
        UsageError: an element type or a placement that cannot be saved.
    """
    source(tensor.to_local(), where)  # raises for types that cannot be saved
    if any(placement.is_partial() for placement in tensor.placements):
        raise UsageError(f"{where} is a DTensor of partial sums; reduce it before it is saved")
    return {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape)}


def own_part(tensor: Any) -> dict[str, Any] | None:
    """This rank's part and its place; None where another rank saves the same or it is empty."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        return None
    for place, placement in zip(coordinate, tensor.placements, strict=True):
        if placement.is_replicate() and place != 0:
            return None
    _, offsets = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    local = tensor.to_local()
    if local.numel() == 0:
        return None
    return {"offsets": list(offsets), "shape": list(local.shape), "tensor": local}


def stand_ins(name: str, saved: Saved | None) -> dict[str, torch.Tensor]:
    """In place of all tensors of an entry that were sharded: their types and shapes, no values.

    Args:
        name: of the entry, for errors.
        saved: the document that describes them; None where there are none.

    Raises:
        CheckpointDamagedError: a description makes no sense.
    """
    if saved is None:
        return {}
    try:
        return {
            key: torch.empty(
                description["shape"], dtype=BY_NAME[description["dtype"]], device="meta"
            )
            for key, description in saved.json.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointDamagedError(
            f"{name}: sharded tensors that nobody saved like this: {error!r}"
        ) from None


def gathered(saved: Saved | None, targets: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors that were sharded, each cut as its target is: of a part, no more is read.

    Args:
        saved: the document that describes them, as ``stand_ins`` has checked it.
        targets: by name; those that were not sharded are passed over. For one that is no DTensor,
            or has another shape, the whole tensor is put together.

    Raises:
        CheckpointDamagedError: parts are missing, do not fit, or are not what was saved.
    """
    if saved is None or saved.parts is None:
        return {}
    found: dict[str, Any] = {}
    wanted = []
    for key, target in targets.items():
        if key not in saved.json:
            continue
        dtype, shape = saved.json[key]["dtype"], tuple(saved.json[key]["shape"])
        cut = is_sharded(target) and tuple(target.shape) == shape
        offsets, lengths = _own_box(target) if cut else ((0,) * len(shape), shape)
        local = torch.empty(lengths, dtype=BY_NAME[dtype])
        found[key] = (local, target if cut else None)
        if local.numel():
            into = local.reshape(-1).view(torch.uint8).numpy().data
            wanted.append(Wanted(key, dtype, shape, (offsets, lengths), into))
    saved.parts.fill(wanted)
    return {
        key: local if target is None else _as_dtensor(local, target)
        for key, (local, target) in found.items()
    }


def like(full: Any, target: Any) -> Any:
    """``full`` cut as ``target`` is; itself where that is no DTensor, or has another shape."""
    if not is_sharded(target) or is_sharded(full) or full.shape != target.shape:
        return full
    local = full
    for dim, (offset, length) in enumerate(zip(*_own_box(target), strict=True)):
        local = local.narrow(dim, offset, length)
    return _as_dtensor(local.clone(), target)


def _own_box(target: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Offsets and lengths of this rank's part of a DTensor."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    lengths, offsets = compute_local_shape_and_global_offset(
        target.shape, target.device_mesh, target.placements
    )
    # A rank without a part has its empty place at the end.
    within = (
        min(offset, size - length)
        for offset, length, size in zip(offsets, lengths, target.shape, strict=True)
    )
    return tuple(within), tuple(lengths)


def _as_dtensor(local: torch.Tensor, target: Any) -> Any:
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local.to(target.to_local().device),
        target.device_mesh,
        target.placements,
        run_check=False,
        shape=target.shape,
        stride=target.stride(),
    )
