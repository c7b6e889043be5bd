"""Large files of tensors, read straight into the memory of a module's tensors."""

import ctypes
from collections.abc import Mapping

import torch

from trainkit.checkpoint.adapters.base import FileTensor, Reading, TensorFile
from trainkit.checkpoint.adapters.torch.tensors import BY_NAME, copy_all_into, dtype_of, restored
from trainkit.checkpoint.format.tensors import ReadTensor

__all__ = ["straight_into"]


def straight_into(
    targets: Mapping[str, torch.Tensor], stored: Mapping[str, ReadTensor]
) -> Reading | None:
    """What reads all of ``stored`` into ``targets``, which have the same names and shapes.

    The bytes of large files go straight into tensors on the CPU. What cannot be read like that,
    such as tensors of another type of elements, or the second of two that share memory, is read
    into memory of its own and copied, in the order of ``targets``.

    Returns:
        None where nothing can be read like that.
    """
    unread = {key: one for key, one in stored.items() if isinstance(one, FileTensor)}
    straight = _straight(targets, unread) if unread else set()
    if not straight or len({(one.file, one.key) for one in unread.values()}) < len(unread):
        return None
    values = {
        key: torch.empty(stored[key].shape, dtype=dtype_of(stored[key]), device="cpu")
        if key in unread
        else restored(stored[key])
        for key in targets
        if key not in straight
    }
    files: dict[TensorFile, dict[str, memoryview]] = {}
    for key, one in unread.items():
        files.setdefault(one.file, {})[one.key] = _memory(values.get(key, targets[key]))

    def read() -> None:
        try:
            for file, into in files.items():
                file.fill(into)
        finally:
            # Of what is written behind its back, autograd has to be told.
            torch.autograd.graph.increment_version([targets[key] for key in straight])
        copy_all_into([targets[key] for key in values], [*values.values()])

    return Reading(read)


def _straight(targets: Mapping[str, torch.Tensor], stored: Mapping[str, FileTensor]) -> set[str]:
    """Those whose memory is what the file has; of several that share memory the first, if any."""
    places = []
    for number, (key, target) in enumerate(targets.items()):
        if target.device.type == "cpu" and target.layout is torch.strided:
            begin = target.data_ptr()
            places.append((begin, begin + _extent(target), number, key))
    straight: set[str] = set()
    group: list[tuple[int, str]] = []
    end = 0
    for begin, its_end, number, key in [*sorted(places), (1 << 64, 0, 0, "")]:
        if begin >= end and group:  # nothing before it reaches this far
            _, first = min(group)
            if first in stored and _is_like(targets[first], stored[first]):
                straight.add(first)
            group = []
        group.append((number, key))
        end = max(end, its_end)
    return straight


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    if tensor.is_contiguous():
        return tensor.numel() * tensor.element_size()
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (sum((size - 1) * stride for size, stride in steps) + 1) * tensor.element_size()


def _is_like(target: torch.Tensor, stored: FileTensor) -> bool:
    """Whether the bytes in memory would be those in the file."""
    return (
        BY_NAME.get(stored.dtype) is target.dtype
        and target.is_contiguous()
        and not target.is_conj()
        and not target.is_neg()
        and not target.is_inference()
    )


def _memory(tensor: torch.Tensor) -> memoryview:
    """All bytes of a contiguous tensor, to be written to for as long as the tensor lives.

    Not by way of numpy, which has not every type of elements, and may not be there.
    """
    size = tensor.numel() * tensor.element_size()
    if not size:
        return memoryview(bytearray())
    return memoryview((ctypes.c_ubyte * size).from_address(tensor.data_ptr())).cast("B")
