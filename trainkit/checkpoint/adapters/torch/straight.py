"""Large files of tensors, read straight into the memory of a module's tensors."""

from collections.abc import Mapping

import torch

from trainkit.checkpoint.adapters.base import Apply, FileTensor, TensorFile
from trainkit.checkpoint.adapters.torch.tensors import BY_NAME, copy_all_into, dtype_of, restored
from trainkit.checkpoint.format.tensors import ReadTensor

__all__ = ["straight_into"]

_OF_NUMPY = {torch.float32, torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8}


def straight_into(
    targets: Mapping[str, torch.Tensor], stored: Mapping[str, ReadTensor]
) -> Apply | None:
    """What reads all of ``stored`` into ``targets``, which have the same names and shapes.

    The bytes of large files go straight into tensors on the CPU. What cannot be read like that,
    such as tensors of another type of elements, or the second of two that share memory, is read
    into memory of its own and copied.

    Returns:
        None where nothing can be read like that.
    """
    unread = {key: one for key, one in stored.items() if isinstance(one, FileTensor)}
    straight = _straight(targets, unread)
    if not straight:
        return None
    values = {key: restored(one) for key, one in stored.items() if key not in unread}

    def read() -> None:
        files: dict[TensorFile, dict[str, memoryview]] = {}
        for key, one in unread.items():
            if key in straight:
                place = targets[key]
            else:
                place = values[key] = torch.empty(one.shape, dtype=dtype_of(one))
            files.setdefault(one.file, {})[one.key] = _memory(place)
        for file, into in files.items():
            file.fill(into)
        # Of what is written behind its back, autograd has to be told.
        torch.autograd.graph.increment_version([targets[key] for key in straight])
        copy_all_into([targets[key] for key in values], [*values.values()])

    return read


def _straight(targets: Mapping[str, torch.Tensor], stored: Mapping[str, FileTensor]) -> set[str]:
    """Those whose memory is what the file has; of several that share memory, the first."""
    found = []
    for key, one in stored.items():
        target = targets[key]
        if (
            target.device.type == "cpu"
            and BY_NAME.get(one.dtype) is target.dtype
            and target.is_contiguous()
            and not target.is_conj()
            and not target.is_neg()
            and not target.is_inference()
        ):
            begin = target.data_ptr()
            found.append((begin, begin + target.numel() * target.element_size(), key))
    straight, end = set(), 0
    for begin, its_end, key in sorted(found):
        if begin >= end:
            straight.add(key)
            end = its_end
    return straight


def _memory(tensor: torch.Tensor) -> memoryview:
    """All bytes of a contiguous tensor, to be written to."""
    flat = tensor.detach()
    if tensor.dtype in _OF_NUMPY and tensor.ndim == 1 and len(tensor):  # in half of the time
        return flat.numpy().data.cast("B")
    return flat.reshape(-1).view(torch.uint8).numpy().data
