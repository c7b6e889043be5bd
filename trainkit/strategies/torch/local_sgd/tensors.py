"""Small tensors and numbers on their way through the first server, and what becomes of many."""

from collections.abc import Sequence
from typing import Any

import torch

from trainkit.strategies.torch.local_sgd.shard import as_bytes

__all__ = ["reduce_gathered", "tensor_bytes"]


def tensor_bytes(value: Any) -> memoryview:
    """The bytes of a tensor or a number, as ``reduce_gathered`` reads them."""
    return as_bytes(_as_tensor(value).reshape(-1).contiguous())


def reduce_gathered(value: Any, given: Sequence[memoryview], op: str) -> Any:
    """Combine what all workers gave.

    Args:
        value: this worker's own; says shape, type and device.
        given: of all workers, in order of ranks.
        op: mean, sum, min or max.

    Returns:
        A tensor where ``value`` is one, else a number.

    Raises:
        ValueError: the others' values have another size.
    """
    own = _as_tensor(value)
    rows = []
    for data in given:
        if len(data) != own.numel() * own.itemsize:
            raise ValueError(
                f"all_reduce: another worker gave {len(data)} bytes, expected {own.numel()} "
                f"numbers of {own.dtype}, as here"
            )
        rows.append(torch.frombuffer(data, dtype=own.dtype) if len(data) else own.reshape(-1))
    stacked = torch.stack(rows)
    if op in ("min", "max"):
        result = getattr(stacked, f"a{op}")(0)
    else:
        result = stacked.sum(0).to(own.dtype)
        result = result / len(rows) if op == "mean" else result
    result = result.reshape(own.shape)
    return result.to(value.device) if isinstance(value, torch.Tensor) else result.item()


def _as_tensor(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)
