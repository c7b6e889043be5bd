"""What a collective is asked to do, checked before it is queued."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from trainkit.errors import StrategyError
from trainkit.strategies.torch.mpi.wire import op_name

__all__ = ["counts", "devices", "is_cuda", "op", "require", "same_lengths", "what"]

Tensors = Sequence[torch.Tensor]


def op(opts: Any, tensors: Sequence[torch.Tensor]) -> str:
    op = dist.ReduceOp.SUM if opts is None else opts.reduceOp
    if any(tensor.is_sparse for tensor in tensors):
        raise StrategyError(
            "strategy='mpi' reduces dense tensors alone: an Embedding with sparse=True needs "
            "sparse=False, or strategy='ddp'"
        )
    return op_name(op, tensors[0].dtype)


def devices(tensors: Sequence[torch.Tensor]) -> list[torch.device]:
    return sorted({tensor.device for tensor in tensors if tensor.is_cuda}, key=str)


def is_cuda(value: Any) -> bool:
    while isinstance(value, list | tuple):
        if not value:
            return False
        value = value[0]
    return isinstance(value, torch.Tensor) and value.is_cuda


def what(name: str, tensors: Sequence[torch.Tensor], more: str) -> str:
    count = sum(tensor.numel() for tensor in tensors)
    dtype = f" {tensors[0].dtype}" if tensors else ""
    return f"{name} of {count:,}{dtype}" + (f" ({more})" if more else "")


def require(name: str, found: int, wanted: int, output: torch.Tensor, source: torch.Tensor) -> None:
    if found != wanted or output.dtype != source.dtype:
        raise ValueError(
            f"{name}: expected the larger tensor to have {wanted:,} elements of the other's dtype, "
            f"found {found:,} ({source.dtype} -> {output.dtype})"
        )


def same_lengths(name: str, ones: Tensors, groups: Sequence[Tensors]) -> None:
    """MPI's own collectives take equal parts; so does what torch documents for lists."""
    for one, group in zip(ones, groups, strict=True):
        odd = [tuple(tensor.shape) for tensor in group if tensor.numel() != one.numel()]
        if odd:
            raise ValueError(
                f"{name}: expected tensors of {one.numel():,} elements, found {odd[0]}. Pad them, "
                f"or use all_to_all."
            )


def counts(tensor: torch.Tensor, splits: Sequence[int], size: int) -> list[int]:
    if not splits:
        if tensor.numel() % size:
            raise ValueError(f"all_to_all: {tuple(tensor.shape)} does not divide by {size} ranks")
        return [tensor.numel() // size] * size
    if len(splits) != size or sum(splits) != tensor.shape[0]:  # MPI would go past the end
        raise ValueError(
            f"all_to_all: expected {size} splits, one a rank, that add up to the "
            f"{tensor.shape[0]:,} rows of the tensor, found {list(splits)}"
        )
    row = math.prod(tensor.shape[1:])
    return [rows * row for rows in splits]
