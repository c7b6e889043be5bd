"""Boxes: rectangular parts of tensors, and where their elements lie among a tensor's bytes.

A box is a pair of offsets and lengths, one of each a dimension; tensors are contiguous, the last
dimension running fastest. The box of a tensor without dimensions is ``((), ())``.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import TypeAlias

__all__ = ["Box", "box_bytes", "copy_box", "overlap", "split", "strides"]

Numbers: TypeAlias = Sequence[int]
Box: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


def strides(shape: Numbers) -> list[int]:
    """Elements from one index to the next, for each dimension."""
    return [prod(shape[i + 1 :]) for i in range(len(shape))]


def box_bytes(
    shape: Numbers, offsets: Numbers, lengths: Numbers, item_bytes: int
) -> tuple[int, int]:
    """The bytes from the first to the last element of a box; 0 and 0 where it is empty.

    Args:
        shape: of the tensor that the box is in.
        offsets: of the box in it, in elements.
        lengths: of the box.
        item_bytes: bytes of an element.
    """
    if 0 in lengths:
        return 0, 0
    steps = strides(shape)
    first = sum(offset * step for offset, step in zip(offsets, steps, strict=True))
    last = first + sum((length - 1) * step for length, step in zip(lengths, steps, strict=True))
    return first * item_bytes, (last + 1) * item_bytes


def overlap(one: Box, other: Box) -> Box | None:
    """What two boxes of one tensor have in common; None where that is nothing."""
    offsets, lengths = [], []
    for begin, length, other_begin, other_length in zip(*one, *other, strict=True):
        first = max(begin, other_begin)
        count = min(begin + length, other_begin + other_length) - first
        if count <= 0:
            return None
        offsets.append(first)
        lengths.append(count)
    return tuple(offsets), tuple(lengths)


def split(shape: Numbers, box: Box, item_bytes: int, limit: int) -> Iterator[Box]:
    """Cut a box into boxes whose elements lie within ``limit`` bytes, as far as that can be."""
    offsets, lengths = box
    begin, end = box_bytes(shape, offsets, lengths, item_bytes)
    dim = next((dim for dim, length in enumerate(lengths) if length > 1), None)
    if end - begin <= limit or dim is None:
        yield box
        return
    rows = max(1, limit // (strides(shape)[dim] * item_bytes))
    for first in range(0, lengths[dim], rows):
        count = min(rows, lengths[dim] - first)
        part = (
            (*offsets[:dim], offsets[dim] + first, *offsets[dim + 1 :]),
            (*lengths[:dim], count, *lengths[dim + 1 :]),
        )
        # One row may be too long as well; a dimension of one is not cut again.
        yield from split(shape, part, item_bytes, limit) if count == 1 else (part,)


def copy_box(
    source: memoryview,
    source_shape: Numbers,
    source_offsets: Numbers,
    target: memoryview,
    target_shape: Numbers,
    target_offsets: Numbers,
    lengths: Numbers,
    item_bytes: int,
) -> None:
    """Copy a box between two tensors' bytes, in as few runs as there are.

    Args:
        source: bytes from the first element of the box to its last, as ``box_bytes`` has them.
        source_shape: of the tensor that ``source`` is of.
        source_offsets: of the box in it.
        target: all bytes of the other tensor.
        target_shape: of the other tensor.
        target_offsets: of the box in the other tensor.
        lengths: of the box.
        item_bytes: bytes of an element.
    """
    if 0 in lengths:
        return
    run, outer = item_bytes, len(lengths)
    while outer:
        outer -= 1
        run *= lengths[outer]
        # What is cut in a dimension breaks off before the next outer one.
        if not lengths[outer] == source_shape[outer] == target_shape[outer]:
            break
    steps, other_steps = strides(source_shape), strides(target_shape)
    start, _ = box_bytes(target_shape, target_offsets, lengths, item_bytes)
    for place in product(*map(range, lengths[:outer])):
        begin = item_bytes * sum(map(int.__mul__, place, steps))
        other = start + item_bytes * sum(map(int.__mul__, place, other_steps))
        target[other : other + run] = source[begin : begin + run]
