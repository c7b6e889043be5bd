"""Files in a framework's own format pass through as they are, and are rank 0's."""

import pytest

from trainkit.checkpoint.adapters.base import Document, RawFile, Saved
from trainkit.checkpoint.format.tensors import TensorSource
from trainkit.checkpoint.save import files
from trainkit.checkpoint.save.division import SPLIT_BYTES, divide
from trainkit.checkpoint.save.files import FileImage, Layouts
from trainkit.errors import CheckpointDamagedError


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 35])
def test_all_bytes_pass_in_pieces(monkeypatch, size):
    monkeypatch.setattr(files, "_PIECE", 10)
    data = bytes(range(size))
    read = []

    def pieces(begin, end):
        read.append(end - begin)
        return data[begin:end]

    image = FileImage.of_raw("a/b.ubj", RawFile(size, pieces))
    assert (image.path, image.size) == ("a/b.ubj", size)
    assert not read  # only when its turn comes
    assert b"".join(image.parts()) == data
    assert max(read, default=0) <= 10
    assert b"".join(image.parts()) == data  # once more, after an error
    whole = FileImage.of_raw("a/b.ubj", RawFile.of_bytes(bytearray(data)))
    assert b"".join(whole.parts()) == data


def test_a_file_that_shrank_is_no_file():
    image = FileImage.of_raw("a", RawFile(10, lambda begin, end: b"short"))
    with pytest.raises(ValueError, match="a: 5 bytes, not 10"):
        b"".join(image.parts())


def test_rank_0_writes_them_and_plans_do_not_depend_on_their_sizes():
    tensors = {f"t{i}": TensorSource("U8", (SPLIT_BYTES,), bytes) for i in range(4)}

    def plan(rank, size):
        raw = Document("booster/model.ubj", None, raw=RawFile(size, lambda begin, end: b""))
        reference = Document("booster/model.ubj", None)
        return divide([raw, reference, Document("model/model", tensors)], rank, 2, Layouts())

    first, second = plan(0, 7), plan(1, 3 * SPLIT_BYTES)
    assert [image.path for image in first.images] == [
        "booster/model.ubj",
        "model/model-00001-of-00002.safetensors",
        "model/model.safetensors.index.json",
    ]
    assert [image.path for image in second.images] == ["model/model-00002-of-00002.safetensors"]
    assert first.checksum == second.checksum != ""


def test_values_are_no_file():
    with pytest.raises(CheckpointDamagedError, match="where a file was saved"):
        Saved({}, {"a": 1}).file()
