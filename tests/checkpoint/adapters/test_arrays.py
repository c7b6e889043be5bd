"""numpy's arrays are filled in place, however they lie in memory."""

import numpy as np
import pytest

from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.checkpoint.adapters import arrays
from trainkit.errors import EnvironmentFaultError, UsageError

TYPES = [
    "bool", "uint8", "int8", "uint16", "int16", "float16", "uint32", "int32", "float32", "uint64",
    "int64", "float64", "complex64",
]  # fmt: skip


def passed(folder, saved, target):
    manager = CheckpointManager(folder, {"array": saved})
    manager.save(1, blocking=True)
    manager.close()
    options = CheckpointOptions(read_only=True)
    assert CheckpointManager(folder, {"array": target}, options=options).restore_latest() == 1
    return target


@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_bit_for_bit(tmp_path, dtype):
    rng = np.random.default_rng(0)
    saved = rng.integers(0, 2, 48).astype(dtype).reshape(6, 8)
    if saved.dtype.kind in "fc":  # nan with a payload, infinities, the smallest, minus nothing
        saved.reshape(-1)[:4] = [np.nan, -np.inf, np.finfo(dtype).tiny, -0.0]
    target = np.zeros_like(saved)
    passed(tmp_path, saved, target)
    assert target.tobytes() == saved.tobytes()


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.zeros((3, 4)),
        lambda: np.zeros((3, 4), order="F"),
        lambda: np.zeros((6, 8))[::2, ::-2],
        lambda: np.zeros((4, 3)).T,
        lambda: np.zeros((3, 4), ">f8"),
        lambda: np.ma.masked_array(np.zeros((3, 4))),
    ],
)
def test_layouts_and_orders_of_bytes(tmp_path, make):
    saved, target = make(), make()
    values = np.arange(12.0).reshape(3, 4)
    saved[...] = values
    passed(tmp_path / "a", saved, target)
    assert np.array_equal(target, values)
    passed(tmp_path / "b", saved, plain := np.zeros((3, 4)))
    assert np.array_equal(plain, values)


def test_a_view_fills_its_part_alone(tmp_path):
    whole = np.zeros((4, 4))
    passed(tmp_path, np.ones((2, 2)), whole[1:3, 1:3])
    assert whole.sum() == 4
    assert whole[1:3, 1:3].all()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,)])
def test_shapes_at_the_edge(tmp_path, shape):
    saved = np.full(shape, 7.0)
    assert np.array_equal(passed(tmp_path, saved, np.zeros(shape)), saved)


def test_memory_mapped(tmp_path):
    target = np.memmap(tmp_path / "file", np.float32, "w+", shape=(5,))
    passed(tmp_path / "run", np.arange(5, dtype=np.float32), target)
    target.flush()
    assert np.fromfile(tmp_path / "file", np.float32).tolist() == [0, 1, 2, 3, 4]


def test_read_only_is_refused_before_training(tmp_path):
    array = np.zeros(3)
    array.flags.writeable = False
    with pytest.raises(UsageError, match="'array' is a read-only numpy array"):
        CheckpointManager(tmp_path, {"array": array})


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a"]),
        np.array([object()]),
        np.zeros(2, "complex128"),
        np.zeros(2, "datetime64[s]"),
        np.zeros(2, [("x", "f4")]),
        np.zeros(2, np.longdouble),
    ],
)
def test_types_without_a_place_are_named(tmp_path, array):
    manager = CheckpointManager(tmp_path, {"table": {"x": array}})
    with pytest.raises(UsageError, match=r"table\.x is a numpy array of "):
        manager.save(1)
    manager.close()


def test_other_shapes_and_types_are_named(tmp_path):
    for target in (np.zeros((2, 1)), np.zeros(2, np.float32), np.zeros(())):
        with pytest.raises(EnvironmentFaultError, match="array: the run expects an array of shape"):
            passed(tmp_path / str(target.shape) / target.dtype.name, np.zeros(2), target)


def test_scalars_are_no_whole_arrays():
    assert arrays.is_array(np.float32(1))
    assert not arrays.is_whole_array(np.float32(1))
    assert arrays.is_whole_array(np.zeros(()))
