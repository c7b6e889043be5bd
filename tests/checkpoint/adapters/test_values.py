"""Values come back as they were, or are refused by the name of their place."""

import json
import math
import pickle
from collections import Counter, OrderedDict, defaultdict
from enum import IntEnum

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.checkpoint.adapters.values import Encoder, decode, from_json_bytes, to_json_bytes
from trainkit.checkpoint.format.tensors import lay_out, parse
from trainkit.errors import CheckpointDamagedError, UsageError


def through_disk(value):
    encoder = Encoder("entry")
    data = to_json_bytes(encoder.encode(value))
    head, order, _ = lay_out(encoder.tensors, framework="np")
    tensors = bytearray(head + b"".join(encoder.tensors[name].load() for name in order))
    return decode(from_json_bytes(data), parse(memoryview(tensors)))


keys = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.binary(),
                 st.floats(allow_nan=False), st.tuples(st.integers(), st.text()))  # fmt: skip
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(),
    st.binary().map(bytearray),
)  # fmt: skip
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(st.sampled_from(["$kind", "a", "a.b", "[0]", ""]), inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4).map(OrderedDict),
    ),
    max_leaves=20,
)


@given(values)
def test_any_value_comes_back_with_its_types(value):
    assert repr(through_disk(value)) == repr(value)


def test_arrays_of_every_kind_come_back():
    kinds = ["bool", "i1", "u1", "i2", "u2", "f2", "i4", "u4", "f4", "i8", "u8", "f8", "c8"]
    arrays = {kind: np.arange(6).reshape(2, 3).astype(kind) for kind in kinds}
    arrays |= {
        "0-dim": np.array(3.5),
        "empty": np.zeros((0, 3), "i4"),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "strided": np.arange(10)[::-3],
        "big-endian": np.arange(3, dtype=">i4"),
        "__metadata__": np.arange(2),
    }
    back = through_disk(arrays)
    for name, array in arrays.items():
        assert back[name].shape == array.shape, name
        assert back[name].dtype == array.dtype.newbyteorder("="), name
        assert np.array_equal(back[name], array), name
        back[name][...] = 0  # writable, and of its own memory


def test_numpy_scalars_stay_scalars():
    back = through_disk({"a": np.float64(1.5), "b": np.bool_(True), "c": np.int8(-3)})
    assert [type(value) for value in back.values()] == [np.float64, np.bool_, np.int8]
    assert back == {"a": 1.5, "b": True, "c": -3}


def test_places_that_are_spelt_alike_do_not_collide():
    value = {"a.b": np.array([1]), "a": {"b": np.array([2])}, "a[0]": [np.array([3])]}
    value["c"] = {0: np.array([4]), "0": np.array([5])}
    back = through_disk(value)
    assert [int(back["a.b"][0]), int(back["a"]["b"][0]), int(back["a[0]"][0][0])] == [1, 2, 3]
    assert [int(array[0]) for array in back["c"].values()] == [4, 5]


def test_counters_come_back_as_counters():
    back = through_disk(Counter({3: 2, 7: 1}))
    assert type(back) is Counter
    assert back[99] == 0


def test_the_json_is_strict():
    data = to_json_bytes(Encoder("x").encode([math.nan, math.inf, -math.inf]))

    def no_constants(name):
        raise AssertionError(f"{name} is not JSON")

    json.loads(data, parse_constant=no_constants)


class Foo:
    pass


class Level(IntEnum):
    ONE = 1


def holds_itself():
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"state": [0, 1, 2, {"foo": Foo()}]}, r"optimizer\.state\[3\]\.foo is a .*\.?Foo"),
        ({"f": len}, r"optimizer\.f is a builtin_function_or_method"),
        ({"d": defaultdict(list)}, r"optimizer\.d is a collections\.defaultdict"),
        ({"s": {1, 2}}, r"optimizer\.s is a set"),
        ({"e": Level.ONE}, r"optimizer\.e is a .*Level"),
        ({"c": 1j}, r"optimizer\.c is a complex"),
        ({7: {"x": Foo()}}, r"optimizer\[7\]\.x is a .*Foo"),
        ({Foo: 1}, r"optimizer has the key .*Foo"),
        ({(Foo,): 1}, r"optimizer.* is a type"),
        ({"a": np.array(["x"])}, r"optimizer\.a is a numpy array of <U1"),
        ({"a": np.array([Foo()])}, r"optimizer\.a is a numpy array of object"),
        ({"a": np.zeros(2, "c16")}, r"optimizer\.a is a numpy array of complex128"),
        (holds_itself(), r"nested too deeply, or holds itself"),
    ],
)
def test_what_cannot_be_saved_is_named_by_its_place(value, words):
    with pytest.raises(UsageError, match=words):
        Encoder("optimizer").encode(value)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code was run')",))


@pytest.mark.parametrize(
    "value",
    [
        {"$kind": "pickle", "base64": "gAR9lC4="},
        {"$kind": "__class__"},
        {"$kind": ["tuple"]},
        {"$kind": "tuple"},
        {"$kind": "tuple", "items": 3},
        {"$kind": "dict", "items": [[[], 1]]},
        {"$kind": "dict", "items": [[1, 2, 3]]},
        {"$kind": "bytes", "base64": "!"},
        {"$kind": "float", "value": "x"},
        {"$kind": "array", "key": "nowhere"},
        {"$kind": "tensor", "key": "nowhere"},
    ],
)
def test_what_nobody_saved_is_damage(value):
    with pytest.raises(CheckpointDamagedError):
        decode({"a": [value]}, {})


def test_a_pickle_is_bytes_and_stays_bytes():
    assert through_disk(pickle.dumps(Bomb())) == pickle.dumps(Bomb())


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff", pickle.dumps(Bomb())])
def test_what_is_no_json_is_damage(data):
    with pytest.raises(CheckpointDamagedError):
        from_json_bytes(data)
