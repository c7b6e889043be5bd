"""Every tensor is written once, by ranks that have about as much to write."""

import json
from math import prod

from hypothesis import given
from hypothesis import strategies as st

from trainkit.checkpoint.adapters.base import Document
from trainkit.checkpoint.format.layout import tensor_files
from trainkit.checkpoint.format.tensors import TensorSource
from trainkit.checkpoint.save.division import SPLIT_BYTES, divide
from trainkit.checkpoint.save.files import Layouts

MIB = 1 << 20


def tensor(num_bytes):
    def load():
        raise AssertionError("a plan reads no tensor")

    return TensorSource("U8", (num_bytes,), load)


def document(path, sizes, **json_value):
    return Document(path, {f"t{i}": tensor(size) for i, size in enumerate(sizes)}, **json_value)


def plans(documents, world_size):
    return [divide(documents, rank, world_size, Layouts()) for rank in range(world_size)]


def names_of(image):
    length = int.from_bytes(image.head[:8], "little")
    header = json.loads(image.head[8 : 8 + length])
    return {name: value for name, value in header.items() if name != "__metadata__"}


def test_one_rank_writes_plain_files():
    (plan,) = plans([document("model/model", [100 * MIB] * 4, json={"a": 1})], 1)
    assert [image.path for image in plan.images] == ["model/model.json", "model/model.safetensors"]
    assert plan.checksum == ""


def test_small_documents_are_rank_0s():
    first, second = plans([document("model/model", [MIB]), document("optim/o", [MIB] * 3)], 2)
    assert [image.path for image in first.images] == [
        "model/model.safetensors",
        "optim/o.safetensors",
    ]
    assert second.images == []


def test_a_large_model_is_split_as_the_index_says():
    sizes = [40 * MIB] * 6 + [MIB] * 5
    divided = plans([document("model/model", sizes), document("state/s", [20 * MIB])], 3)
    images = {image.path: image for plan in divided for image in plan.images}
    pieces = tensor_files("model/model", list(images))
    assert pieces == [f"model/model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads(images["model/model.safetensors.index.json"].head)
    assert index["metadata"]["total_size"] == sum(sizes)
    found = {}
    for piece in pieces:
        for name in names_of(images[piece]):
            assert name not in found
            found[name] = piece.rpartition("/")[2]
    assert index["weight_map"] == found
    assert len(found) == len(sizes)
    loads = [sum(image.size for image in plan.images) for plan in divided]
    assert max(loads) - min(loads) <= 41 * MIB
    assert len({plan.checksum for plan in divided}) == 1


def test_one_giant_tensor_stays_whole():
    first, second = plans([document("model/model", [400 * MIB])], 2)
    assert [image.path for plan in (first, second) for image in plan.images] == [
        "model/model.safetensors"
    ]


def test_other_tensors_have_another_checksum():
    one, other = (
        divide([document("model/model", [size] * 2)], 0, 2, Layouts())
        for size in (64 * MIB, 65 * MIB)
    )
    assert one.checksum != other.checksum


@given(
    st.lists(st.lists(st.integers(0, 90), max_size=12), min_size=1, max_size=4),
    st.integers(1, 9),
)
def test_all_is_written_once(sizes, world_size):
    documents = [
        document(f"state/d{i}", [size * MIB for size in some]) for i, some in enumerate(sizes)
    ]
    written = {}
    for plan in plans(documents, world_size):
        for image in plan.images:
            assert image.path not in written
            written[image.path] = image
    for one in documents:
        pieces = tensor_files(one.path, written)
        held = [name for piece in pieces for name in names_of(written[piece])]
        assert sorted(held) == sorted(one.tensors)
        total = sum(prod(tensor.shape) for tensor in one.tensors.values())
        if total < 2 * SPLIT_BYTES:
            assert pieces == [f"{one.path}.safetensors"]
