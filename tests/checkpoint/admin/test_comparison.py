"""Differences are those of tensors and values, not of files."""

import pytest

from tests.checkpoint.admin.checkpoints import Counting, Root, f32, flip, zeros
from trainkit.checkpoint.admin.comparison import Side, compare
from trainkit.checkpoint.format.checksums import CHUNK_BYTES
from trainkit.checkpoint.format.tensors import TensorSource
from trainkit.errors import CheckpointDamagedError, InputMissingError

SAME = {"values": {"step": 1}}


def changes(root, first, second, other=None, only=()):
    after = Side.open((other or root).storage, second)
    found = compare(Side.open(root.storage, first), after, only)
    return {(c.entry, c.what, c.name, c.how): (c.before, c.after) for c in found}


def test_the_same_state_has_no_difference(root):
    assert (
        changes(
            root,
            root.save(1, model={"a": f32(1)}, **SAME),
            root.save(2, model={"a": f32(1)}, **SAME),
        )
        == {}
    )


def test_tensors_added_removed_reshaped_retyped_and_changed(root):
    first = root.save(1, model={
        "same": f32(1), "gone": f32(1), "shape": f32(1, 2), "type": f32(1), "value": f32(1, 2),
    }, **SAME)  # fmt: skip
    second = root.save(2, model={
        "same": f32(1), "new": f32(1), "shape": f32(1, 2, shape=(2, 1)),
        "type": TensorSource("I32", (1,), lambda: f32(1).load()), "value": f32(1, 3),
    }, **SAME)  # fmt: skip
    assert changes(root, first, second) == {
        ("model", "tensor", "gone", "removed"): ("F32 [1]", ""),
        ("model", "tensor", "new", "added"): ("", "F32 [1]"),
        ("model", "tensor", "shape", "shape"): ("F32 [2]", "F32 [2, 1]"),
        ("model", "tensor", "type", "dtype"): ("F32 [1]", "I32 [1]"),
        ("model", "tensor", "value", "values"): ("F32 [2]", "F32 [2]"),
    }


def test_where_tensors_lie_makes_no_difference(root):
    model = {name: f32(ord(name)) for name in "abcde"}
    first = root.save(1, model=model, **SAME)
    second = root.save(2, model=model, parts=3, **SAME)
    third = root.save(3, model={**model, "0": f32(1, 2, 3)}, parts=2, **SAME)
    assert changes(root, first, second) == {}
    assert list(changes(root, second, third)) == [("model", "tensor", "0", "added")]


def test_values_in_json(root):
    first = root.save(1, values={"step": 1, "a": [1, {"b": True}], "gone": None, "s": {}})
    second = root.save(2, values={"step": 2, "a": [1, {"b": 1}], "new": 1.5, "s": {}})
    found = changes(root, first, second, only=["progress"])
    assert found == {
        ("progress", "value", "step", "values"): ("1", "2"),
        ("progress", "value", "a[1].b", "values"): ("true", "1"),
        ("progress", "value", "gone", "removed"): ("null", ""),
        ("progress", "value", "new", "added"): ("", "1.5"),
    }


def test_a_long_list_is_one_value(root):
    one, other = list(range(625)), [9, *range(1, 625)]
    first, second = root.save(1, values={"rng": one}), root.save(2, values={"rng": other})
    ((key, (before, _)),) = changes(root, first, second, only=["progress"]).items()
    assert key == ("progress", "value", "rng", "values")
    assert before.startswith("[0, 1")
    assert len(before) < 80


def test_ranks_that_are_more(root):
    first, second = root.save(1, **SAME), root.save(1, world_size=3, **SAME)
    assert list(changes(root, first, second)) == [
        ("rank 1", "entry", "", "added"),
        ("rank 2", "entry", "", "added"),
    ]


def test_between_two_roots(root, tmp_path):
    other = Root(tmp_path / "other")
    assert changes(root, root.save(1), other.save(1), other) == {}


def test_equal_chunks_are_not_read_and_the_others_are(root):
    def model(last):
        data = bytes(3 * CHUNK_BYTES) + bytes([last])
        return {"w": TensorSource("U8", (len(data),), lambda: data), "z": zeros(5)}

    first, second = root.save(1, model=model(1), **SAME), root.save(2, model=model(2), **SAME)
    storage = Counting(root.storage)
    found = list(compare(Side.open(storage, first), Side.open(storage, second), ["model"]))
    assert [change.name for change in found] == ["w"]
    # Two heads, and of the four chunks on each side the last one.
    assert sum(storage.bytes_read.values()) < 2 * 16 * 1024 + CHUNK_BYTES


def test_equal_chunks_count_only_where_a_tensor_lies_in_the_same_place(root):
    ones = b"\1" * (2 * CHUNK_BYTES)
    one = TensorSource("U8", (len(ones),), lambda: ones)
    first = root.save(1, model={"a": zeros(len(ones)), "m": one}, **SAME)
    second = root.save(2, model={"m": zeros(len(ones)), "z": one}, **SAME)
    assert ("model", "tensor", "m", "values") in changes(root, first, second)


def test_a_difference_anywhere_in_a_tensor_that_has_moved_is_found(root):
    data = bytearray(range(256)) * (9 * 4096)  # more than one chunk
    before = root.save(
        1, model={"w": TensorSource("U8", (len(data),), lambda: bytes(data))}, **SAME
    )
    for position in (0, CHUNK_BYTES, len(data) - 1):
        data[position] ^= 1
        after = root.save(2, model={
            "w": TensorSource("U8", (len(data),), lambda: bytes(data)), "a-longer-header": f32(1),
        }, **SAME)  # fmt: skip
        found = changes(root, before, after)
        assert ("model", "tensor", "w", "values") in found, position
        data[position] ^= 1
    after = root.save(3, model={
        "w": TensorSource("U8", (len(data),), lambda: bytes(data)), "a-longer-header": f32(1),
    }, **SAME)  # fmt: skip
    assert list(changes(root, before, after)) == [("model", "tensor", "a-longer-header", "added")]


def test_an_entry_that_neither_has(root):
    with pytest.raises(InputMissingError, match="they have model, progress, rank 0"):
        changes(root, root.save(1), root.save(2), only=["modle"])


def test_damage_is_no_difference(root, disk):
    first, second = root.save(1), root.save(2)
    flip(disk / second.name / "state" / "progress.json")
    with pytest.raises(CheckpointDamagedError, match=r"progress\.json"):
        changes(root, first, second)
    (disk / second.name / "state" / "progress.json").unlink()
    with pytest.raises(CheckpointDamagedError, match="is missing"):
        changes(root, first, second)
