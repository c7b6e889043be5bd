"""Boxes of tensors, held against numpy's slices."""

import random
from math import prod

import numpy as np
import pytest

from trainkit.checkpoint.format.boxes import box_bytes, copy_box, overlap, split


def some_box(draw, shape):
    offsets = tuple(draw.randint(0, size) for size in shape)
    return offsets, tuple(draw.randint(0, s - o) for s, o in zip(shape, offsets, strict=True))


def slices(box):
    return tuple(slice(o, o + n) for o, n in zip(*box, strict=True))


def shapes(draw):
    return tuple(draw.randint(1, 6) for _ in range(draw.randint(0, 4)))


@pytest.mark.parametrize("seed", range(300))
def test_a_part_fills_what_it_has_of_a_box(seed):
    draw = random.Random(seed)
    shape = shapes(draw)
    whole = np.arange(prod(shape), dtype=draw.choice([np.uint8, np.float64])).reshape(shape)
    item = whole.itemsize
    one, other = some_box(draw, shape), some_box(draw, shape)
    part = np.ascontiguousarray(whole[slices(one)])
    target = np.full(other[1], 77, whole.dtype)
    expected = target.copy()
    mask = np.zeros(shape, bool)
    mask[slices(one)] = True
    mask = mask[slices(other)]
    expected[mask] = whole[slices(other)][mask]
    common = overlap(one, other)
    assert (common is not None) == bool(mask.any())
    if common is not None:
        assert prod(common[1]) == mask.sum()
        within = tuple(a - b for a, b in zip(common[0], one[0], strict=True))
        for box in split(one[1], (within, common[1]), item, draw.choice([1, 40, 10**6])):
            begin, end = box_bytes(one[1], *box, item)
            offsets = tuple(o + a - b for o, a, b in zip(box[0], one[0], other[0], strict=True))
            source = memoryview(part.tobytes())[begin:end]
            into = memoryview(target.reshape(-1).view(np.uint8)) if target.ndim else None
            if into is None:
                buffer = bytearray(target.tobytes())
                copy_box(source, one[1], box[0], memoryview(buffer), (), (), (), item)
                target = np.frombuffer(buffer, whole.dtype).reshape(())
            else:
                copy_box(source, one[1], box[0], into, other[1], offsets, box[1], item)
    assert np.array_equal(target, expected)


@pytest.mark.parametrize("seed", range(100))
def test_cut_boxes_are_all_of_it_once_and_as_small_as_asked_for(seed):
    draw = random.Random(seed)
    shape = shapes(draw)
    box = some_box(draw, shape)
    limit = draw.choice([8, 64, 500])
    count = np.zeros(shape, int)
    for part in split(shape, box, 8, limit):
        begin, end = box_bytes(shape, *part, 8)
        assert end - begin <= limit
        count[slices(part)] += 1
    expected = np.zeros(shape, int)
    expected[slices(box)] = 1
    assert np.array_equal(count, expected)


def test_large_boxes_are_cut_by_rows():
    assert [*split((6, 4), ((1, 0), (5, 4)), 1, 8)] == [
        ((1, 0), (2, 4)), ((3, 0), (2, 4)), ((5, 0), (1, 4)),
    ]  # fmt: skip
