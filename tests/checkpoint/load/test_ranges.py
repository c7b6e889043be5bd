import numpy as np
import pytest

from trainkit.checkpoint.format.checksums import CHUNK_BYTES, ChunkHasher
from trainkit.checkpoint.load.ranges import RangeReader
from trainkit.errors import CheckpointDamagedError
from trainkit.storage import LocalStorage

SIZE = 2 * CHUNK_BYTES + 1000


class CountingStorage(LocalStorage):
    def __init__(self, root):
        super().__init__(root)
        self.reads = []

    def read_into(self, path, buffer, offset=0):
        self.reads.append((offset, len(buffer)))
        return super().read_into(path, buffer, offset)


@pytest.fixture
def data():
    return np.random.default_rng(5).integers(0, 256, SIZE, np.uint8).tobytes()


@pytest.fixture
def storage(tmp_path, data):
    storage = CountingStorage(tmp_path)
    storage.write("step/file", [data])
    return storage


@pytest.fixture
def reader(storage, data):
    hasher = ChunkHasher()
    hasher.update(data)
    with RangeReader(storage, "step", {"file": hasher.record}, threads=2) as reader:
        yield reader


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        (0, 0),
        (0, 1),
        (SIZE - 1, SIZE),
        (SIZE, SIZE),
        (CHUNK_BYTES - 1, CHUNK_BYTES + 1),
        (CHUNK_BYTES, 2 * CHUNK_BYTES),
        (5, SIZE - 5),
        (0, SIZE),
    ],
)
def test_any_range(reader, data, begin, end):
    assert bytes(reader.read("file", begin, end)) == data[begin:end]


def test_only_the_chunks_around_a_range_are_read_and_none_twice(reader, storage, data):
    assert (
        bytes(reader.read("file", CHUNK_BYTES + 1, CHUNK_BYTES + 9))
        == (data[CHUNK_BYTES + 1 : CHUNK_BYTES + 9])
    )
    assert (
        bytes(reader.read("file", CHUNK_BYTES + 9, CHUNK_BYTES + 12))
        == (data[CHUNK_BYTES + 9 : CHUNK_BYTES + 12])
    )
    assert bytes(reader.read("file", CHUNK_BYTES + 9, SIZE)) == data[CHUNK_BYTES + 9 :]
    assert storage.reads == [(CHUNK_BYTES, CHUNK_BYTES), (2 * CHUNK_BYTES, 1000)]


@pytest.mark.parametrize(("begin", "end"), [(0, SIZE + 1), (2, 1), (-1, 3)])
def test_ranges_outside_the_file(reader, begin, end):
    with pytest.raises(CheckpointDamagedError, match="bytes long"):
        reader.read("file", begin, end)


def test_files_that_the_manifest_does_not_list(reader):
    with pytest.raises(CheckpointDamagedError, match="other is not listed in the manifest"):
        reader.read("other", 0, 1)


@pytest.mark.parametrize("place", [0, CHUNK_BYTES, SIZE - 1])
def test_a_flipped_bit_in_any_chunk(reader, tmp_path, data, place):
    damaged = bytearray(data)
    damaged[place] ^= 1
    (tmp_path / "step/file").write_bytes(damaged)
    with pytest.raises(CheckpointDamagedError, match=r"step/file: bytes .* do not match"):
        reader.read("file", 0, SIZE)


def test_a_file_cut_off_or_gone(reader, tmp_path, data):
    (tmp_path / "step/file").write_bytes(data[:-1])
    with pytest.raises(CheckpointDamagedError, match="do not match"):
        reader.read("file", 0, SIZE)
    (tmp_path / "step/file").unlink()
    with pytest.raises(CheckpointDamagedError, match="step/file is gone"):
        reader.read("file", 0, 1)
