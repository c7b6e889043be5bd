"""Tensors of which each rank has a part: DTensor, as FSDP2's ``fully_shard`` makes them.

What they are is the same on all ranks and lies with their entry; each rank's part lies with what
only this rank has. A restore puts them together and cuts them as the run needs them, so that the
number of ranks may change, and a model saved whole may be restored sharded, or the other way.
"""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from trainkit.checkpoint.adapters.base import Saved
from trainkit.checkpoint.adapters.torch.tensors import DTYPES, source
from trainkit.errors import CheckpointDamagedError, UsageError

__all__ = ["described", "is_sharded", "like", "own_part", "wholes"]


def is_sharded(value: Any) -> bool:
    """Whether ``value`` is a DTensor; nothing is imported to tell."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(value, module.DTensor)


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
    return {"offsets": list(offsets), "tensor": local}


def wholes(name: str, saved: Saved | None) -> dict[str, torch.Tensor]:
    """All tensors of an entry that were sharded, put together.

    Args:
        name: of the entry, for errors.
        saved: the document that describes them, with the parts of all ranks.

    Raises:
        CheckpointDamagedError: parts are missing, or do not fit.
    """
    if saved is None:
        return {}
    try:
        return {
            key: _whole(f"{name}.{key}", description, saved.parts.get(key, ()))
            for key, description in saved.json.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, CheckpointDamagedError):
            raise
        raise CheckpointDamagedError(f"{name}: parts that do not fit: {error}") from None


def _whole(name: str, description: Mapping[str, Any], parts: Iterable[Any]) -> torch.Tensor:
    """Put the parts of all ranks together.

    Raises:
        CheckpointDamagedError: they are not all of it.
    """
    dtypes = {stored: dtype for dtype, stored in DTYPES.items()}
    full = torch.empty(description["shape"], dtype=dtypes[description["dtype"]])
    found = 0
    for part in parts:
        box, tensor = full, part["tensor"]
        for dim, (offset, length) in enumerate(zip(part["offsets"], tensor.shape, strict=True)):
            box = box.narrow(dim, offset, length)
        box.copy_(tensor)
        found += tensor.numel()
    if found != full.numel():
        raise CheckpointDamagedError(
            f"{name}: ranks have saved {found} of its {full.numel()} elements"
        )
    return full


def like(full: Any, target: Any) -> Any:
    """``full`` cut as ``target`` is; itself where that is no DTensor, or has another shape."""
    if not is_sharded(target) or is_sharded(full) or full.shape != target.shape:
        return full
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offsets = compute_local_shape_and_global_offset(
        target.shape, target.device_mesh, target.placements
    )
    local = full
    for dim, (offset, length) in enumerate(zip(offsets, shape, strict=True)):
        # A rank without a part has its empty place at the end.
        local = local.narrow(dim, min(offset, full.shape[dim] - length), length)
    return DTensor.from_local(
        local.clone().to(target.to_local().device),
        target.device_mesh,
        target.placements,
        run_check=False,
        shape=target.shape,
        stride=target.stride(),
    )
