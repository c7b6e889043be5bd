"""Our tensor files are safetensors to everybody else, and hostile ones are refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.checkpoint.format.tensors import (
    ITEM_BYTES,
    TensorPlace,
    TensorSource,
    header_length,
    lay_out,
    parse,
    places,
)
from trainkit.errors import CheckpointDamagedError

safetensors = pytest.importorskip("safetensors")


def tensor(dtype, shape):
    count = ITEM_BYTES[dtype]
    for extent in shape:
        count *= extent
    data = bytes(i % 251 for i in range(count))
    if dtype == "BOOL":
        data = bytes(byte % 2 for byte in data)
    return TensorSource(dtype, tuple(shape), lambda: data)


def file_of(tensors):
    head, order, size = lay_out(tensors, framework="pt")
    data = head + b"".join(tensors[name].load() for name in order)
    assert len(data) == size
    return data


shapes = st.lists(st.integers(0, 4), max_size=3)


kinds = st.tuples(st.sampled_from(sorted(ITEM_BYTES)), shapes)
names = st.text(max_size=9).filter(lambda name: name != "__metadata__")


@given(st.dictionaries(names, kinds, max_size=6))
def test_any_reader_of_safetensors_reads_them(described):
    tensors = {name: tensor(*what) for name, what in described.items()}
    data = file_of(tensors)
    theirs = dict(safetensors.deserialize(data))
    ours = parse(memoryview(bytearray(data)))
    assert set(theirs) == set(ours) == set(tensors)
    for name, source in tensors.items():
        assert bytes(theirs[name]["data"]) == bytes(ours[name].data) == bytes(source.load())
        assert tuple(theirs[name]["shape"]) == ours[name].shape == source.shape
        assert theirs[name]["dtype"] == ours[name].dtype == source.dtype


def test_places_are_found_without_the_tensors():
    data = file_of({"a": tensor("F32", [2]), "b": tensor("U8", [3])})
    length = header_length(data[:8], len(data))
    found = places(data[8 : 8 + length], len(data) - 8 - length)
    assert found == {"a": TensorPlace("F32", (2,), 0, 8), "b": TensorPlace("U8", (3,), 8, 11)}


def test_tensors_are_aligned_to_their_elements():
    tensors = {"a": tensor("BOOL", [3]), "b": tensor("F64", [1]), "c": tensor("BF16", [1])}
    data = file_of(tensors)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name, source in tensors.items():
        assert (8 + length + header[name]["data_offsets"][0]) % ITEM_BYTES[source.dtype] == 0


def file(header, body=b"12345678", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return memoryview(
        bytearray((len(text) if length is None else length).to_bytes(8, "little") + text + body)
    )


@pytest.mark.parametrize(
    "data",
    [
        memoryview(b""),
        memoryview(b"1234"),
        file({}, length=2**63),
        file({}, length=1000),
        file(b"no json"),
        file(b"[]"),
        file(b"[" * 100_000),
        file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}}),
        file({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}),
        file({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}}),
        file({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}),
        file({"a": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}}),
        file({"a": {"dtype": "OBJECT", "shape": [], "data_offsets": [0, 8]}}),
        file({"a": {"dtype": "F32", "shape": [2]}}),
        file({"a": 3}),
    ],
)
def test_what_is_no_tensor_file_is_refused(data):
    with pytest.raises(CheckpointDamagedError, match="not a safetensors file"):
        parse(data)
