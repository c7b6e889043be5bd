"""torch's tensors as bytes, and back."""

from typing import Any

from trainkit.checkpoint.format.tensors import ReadTensor, TensorSource
from trainkit.errors import DependencyError, UsageError
from trainkit.storage import Bytes

try:
    import torch
except ImportError:
    raise DependencyError(
        "the checkpoint holds torch tensors; install trainkit[torch], or torch"
    ) from None

__all__ = [
    "BY_NAME",
    "DTYPES",
    "TorchSource",
    "copy_all_into",
    "copy_into",
    "dtype_of",
    "is_tensor",
    "restored",
    "source",
]

DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
}
"""Element types, and what the safetensors format calls them."""
BY_NAME = {name: dtype for dtype, name in DTYPES.items()}


class TorchSource(TensorSource):
    """A tensor of torch's to be written. Not one call more than it takes to make thousands."""

    __slots__ = ()

    def __init__(self, dtype: str, tensor: torch.Tensor) -> None:
        """Take a tensor whose elements are ``dtype``, as the format calls it."""
        self.dtype, self.shape, self.origin = dtype, tensor.shape, tensor

    def load(self) -> Bytes:
        """The bytes of its elements, in the order of its own shape."""
        tensor = self.origin
        if tensor.numel() == 0:
            return b""
        flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        data: Bytes = flat.view(torch.uint8).numpy().data
        return data


def is_tensor(value: Any) -> bool:
    """Whether ``value`` is a tensor or a parameter."""
    return isinstance(value, torch.Tensor)


def source(tensor: torch.Tensor, where: str) -> TensorSource:
    """Describe a tensor for a tensor file; it leaves its device when its turn comes.

    Raises:
        UsageError: a layout or an element type that has no place in safetensors.
    """
    kind = type(tensor).__name__
    if tensor.layout is not torch.strided or tensor.is_quantized or kind == "DTensor":
        shown = kind if kind == "DTensor" else f"{tensor.layout} tensor"
        raise UsageError(f"{where} is a {shown}; only plain dense tensors can be saved yet")
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None or tensor.is_meta:
        raise UsageError(
            f"{where} is a tensor of {tensor.dtype} on {tensor.device}, which a checkpoint "
            f"cannot hold. Element types that it holds: {', '.join(map(str, DTYPES))}."
        )
    return TorchSource(dtype, tensor)


def dtype_of(stored: ReadTensor) -> torch.dtype:
    """Its type of elements.

    Raises:
        ValueError: one that torch does not have.
    """
    dtype = BY_NAME.get(stored.dtype)
    if dtype is None:
        raise ValueError(f"torch has no element type for {stored.dtype}")
    return dtype


def restored(stored: ReadTensor) -> torch.Tensor:
    """A tensor over the stored bytes themselves, on the CPU.

    Raises:
        ValueError: a type of element that torch does not have.
    """
    dtype = dtype_of(stored)
    if len(stored.data) == 0:
        return torch.empty(stored.shape, dtype=dtype)
    flat = torch.frombuffer(stored.data, dtype=dtype)
    return flat if len(stored.shape) == 1 else flat.view(stored.shape)


def copy_into(target: torch.Tensor, value: torch.Tensor) -> None:
    """Write ``value`` into the tensor ``target`` itself."""
    with torch.no_grad():
        target.copy_(value)


def copy_all_into(targets: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    """Write ``values`` into the tensors ``targets`` themselves, in one call of torch."""
    if targets:
        with torch.no_grad():
            torch._foreach_copy_(targets, values)
