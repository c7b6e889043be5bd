"""numpy arrays and scalars. numpy is looked up when it is met, and never required."""

import sys
from typing import Any

from trainkit.checkpoint.format.tensors import ReadTensor, TensorSource
from trainkit.errors import DependencyError, UsageError
from trainkit.storage import Bytes

__all__ = ["copy_into", "is_array", "is_whole_array", "is_writable", "restored", "source"]

_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "float16": "F16",
    "uint32": "U32",
    "int32": "I32",
    "float32": "F32",
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
    "complex64": "C64",
}
_NAMES = {stored: name for name, stored in _DTYPES.items()}


def is_array(value: Any) -> bool:
    """Whether ``value`` is a numpy array or scalar."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic))


def is_whole_array(value: Any) -> bool:
    """Whether ``value``, for which ``is_array`` holds, is an array and not a scalar."""
    import numpy as np

    return isinstance(value, np.ndarray)


def is_writable(value: Any) -> bool:
    """Whether an array can be filled in place."""
    return bool(value.flags.writeable)


def source(value: Any, where: str) -> TensorSource:
    """Describe an array for a tensor file.

    Raises:
        UsageError: its element type has no place in safetensors, objects and strings included.
    """
    import numpy as np

    array = np.asarray(value)
    dtype = _DTYPES.get(array.dtype.name)
    if dtype is None:
        raise UsageError(
            f"{where} is a numpy array of {array.dtype}, which a checkpoint cannot hold. Use one "
            f"of {', '.join(_DTYPES)}, or a list."
        )

    def load() -> Bytes:
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        return little.reshape(-1).view(np.uint8).data if array.size else b""

    return TensorSource(dtype, tuple(array.shape), load)


def restored(stored: ReadTensor) -> Any:
    """A new array with the stored values.

    Raises:
        DependencyError: numpy is not installed.
        ValueError: a type of element that numpy does not have.
    """
    try:
        import numpy as np
    except ImportError:
        raise DependencyError("the checkpoint holds numpy arrays; install numpy") from None
    if stored.dtype not in _NAMES:
        raise ValueError(f"numpy has no element type for {stored.dtype}")
    dtype = np.dtype(_NAMES[stored.dtype]).newbyteorder("<")
    return np.frombuffer(stored.data, dtype=dtype).reshape(stored.shape).astype(dtype.name)


def copy_into(target: Any, values: Any) -> None:
    """Write ``values`` into the array ``target`` itself."""
    import numpy as np

    np.copyto(target, values)
