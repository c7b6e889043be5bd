"""``precision="bf16"``: the forward pass under autocast, everything else in fp32."""

from collections.abc import Callable
from functools import wraps
from types import MethodType
from typing import Any

import torch

from trainkit.errors import UsageError

__all__ = ["PRECISIONS", "apply_precision", "dtype_of"]

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}
"""Names that users write → autocast's dtype. fp16 is left out: it needs a loss scaler in the
user's loop, and every GPU that this package supports has bf16."""


def dtype_of(precision: str | None) -> torch.dtype | None:
    """What ``precision`` computes in; None leaves everything in fp32.

    Raises:
        UsageError: an unknown precision.
    """
    name = precision or "fp32"
    if name not in PRECISIONS:
        raise UsageError(f"precision={precision!r} is not known. Known: {', '.join(PRECISIONS)}.")
    return PRECISIONS[name]


def apply_precision(model: torch.nn.Module, precision: str | None, device_type: str) -> None:
    """Make ``model`` compute as ``precision`` says; parameters stay in fp32.

    Outputs come back in fp32, so that a loss computed outside of the model keeps its accuracy.

    Raises:
        UsageError: an unknown precision.
    """
    dtype = dtype_of(precision)
    if dtype is None:
        return
    if "forward" in vars(model):  # somebody replaced it before: torch.compile, say
        model.forward = _autocast(model.forward, dtype, device_type)
    else:
        # Bound to the model, so that a deep copy (an EMA, a teacher) runs its own weights.
        model.forward = MethodType(_autocast(type(model).forward, dtype, device_type), model)


def _autocast(
    forward: Callable[..., Any], dtype: torch.dtype, device_type: str
) -> Callable[..., Any]:
    @wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type, dtype):
            output = forward(*args, **kwargs)
        return _to_fp32(output, dtype)

    return run


def _to_fp32(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype == dtype else value
    if isinstance(value, dict):
        return type(value)({key: _to_fp32(item, dtype) for key, item in value.items()})
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_to_fp32(item, dtype) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(_to_fp32(item, dtype) for item in value)
    return value
