"""Pieces of tensors as bytes of a safetensors file, whatever their element type."""

from collections.abc import Callable, Sequence

import torch

from trainkit.checkpoint.adapters.torch.tensors import DTYPES
from trainkit.checkpoint.format.boxes import strides
from trainkit.checkpoint.format.tensors import TensorSource
from trainkit.errors import UsageError
from trainkit.storage import Bytes

__all__ = ["as_source", "box_of"]


def as_source(
    name: str, dtype: torch.dtype, sizes: Sequence[int], resolve: Callable[[], torch.Tensor]
) -> TensorSource:
    """Describe a tensor of which only type and sizes are known yet.

    Types that safetensors lacks are stored as their bytes, with one more dimension; the
    metadata tells the type.

    Args:
        name: for errors.
        dtype: element type, as planned.
        sizes: as planned.
        resolve: gives the tensor when its turn comes.
    """

    def load() -> Bytes:
        tensor = resolve()
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = "quantized" if tensor.is_quantized else f"{tensor.layout}, {tensor.device}"
            raise UsageError(
                f"{name} is a tensor that cannot be saved ({kind}); expected a dense one"
            )
        if tensor.dtype != dtype or list(tensor.shape) != list(sizes):
            raise UsageError(
                f"{name}: the planner planned {dtype} of shape {tuple(sizes)} and gave "
                f"{tensor.dtype} of shape {tuple(tensor.shape)}. A planner that changes tensors "
                f"has to say so in the tensor_data of its plan."
            )
        if tensor.numel() == 0:
            return b""
        flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        return flat.view(torch.uint8).numpy().data

    stored = DTYPES.get(dtype)
    if stored is None:
        return TensorSource("U8", (*sizes, dtype.itemsize), load)
    return TensorSource(stored, tuple(sizes), load)


def box_of(
    data: memoryview, dtype: torch.dtype, sizes: Sequence[int], lengths: Sequence[int]
) -> torch.Tensor:
    """The box whose bytes, as ``box_bytes`` counts them, are ``data``; it may share memory."""
    if len(data) == 0:
        return torch.empty(tuple(lengths), dtype=dtype)
    flat = torch.frombuffer(data, dtype=torch.uint8)
    if flat.data_ptr() % dtype.itemsize:  # torch's kernels crash on some such addresses
        flat = flat.clone()
    return flat.view(dtype).as_strided(tuple(lengths), strides(sizes))
