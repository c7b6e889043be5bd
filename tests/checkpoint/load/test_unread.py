"""Files that are read straight to where their tensors belong: every byte is verified on its way."""

import errno
import random
import threading

import pytest

from tests.checkpoint.admin.checkpoints import file_of
from trainkit.checkpoint.format.checksums import CHUNK_BYTES, record_of
from trainkit.checkpoint.format.tensors import TensorSource
from trainkit.checkpoint.load.unread import UnreadFile
from trainkit.errors import CheckpointDamagedError
from trainkit.storage import LocalStorage, scattering

SIZES = {"a": 3 * CHUNK_BYTES - 5, "b": 0, "c": 17, "d": CHUNK_BYTES}


def written(folder, sizes=SIZES):
    """A storage with a file of tensors, their bytes, and its record."""
    rng = random.Random(0)
    data = {name: rng.randbytes(size) for name, size in sizes.items()}
    sources = {
        name: TensorSource("U8", (len(one),), lambda one=one: one) for name, one in data.items()
    }
    file = file_of(sources)
    storage = LocalStorage(folder)
    storage.write("f", [file])
    return storage, data, record_of(file)


def memory(data):
    return {name: memoryview(bytearray(len(one))) for name, one in data.items()}


def change(folder, place):
    with open(folder / "f", "r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("count", [1, 100_000])
def test_all_tensors_are_filled(tmp_path, count):
    """Also where the header alone is longer than a chunk."""
    storage, data, record = written(tmp_path, {f"{i:042}": 1 for i in range(count)} | SIZES)
    file, into = UnreadFile(storage, "f", record), memory(data)
    assert file.is_dense
    assert {key: (one.dtype, one.shape) for key, one in file.tensors.items()} == {
        key: ("U8", (len(one),)) for key, one in data.items()
    }
    file.fill(into)
    assert into == data


def test_each_tensor_alone_is_in_memory_of_ones_own(tmp_path):
    storage, data, record = written(tmp_path)
    tensors = UnreadFile(storage, "f", record).tensors
    assert {name: bytes(tensor.data) for name, tensor in tensors.items()} == data
    tensors["a"].data[:1] = b"x"
    assert UnreadFile(storage, "f", record).tensors["a"].data[:1] == data["a"][:1]


@pytest.mark.parametrize("chunk", range(1, 5))
def test_a_wrong_byte_in_any_chunk_is_found_and_its_place_named(tmp_path, chunk):
    """But for the first, which is in memory by then."""
    storage, data, record = written(tmp_path)
    files = [UnreadFile(storage, "f", record) for _ in range(2)]
    change(tmp_path, min((chunk + 1) * CHUNK_BYTES, record.size) - 1)
    place = f"f: bytes {chunk * CHUNK_BYTES} to .* do not match their checksum"
    with pytest.raises(CheckpointDamagedError, match=place):
        files[0].fill(memory(data))
    with pytest.raises(CheckpointDamagedError, match=place):
        files[1].data("a")


def test_a_damaged_header_is_found_before_anything_is_filled(tmp_path):
    storage, _, record = written(tmp_path)
    change(tmp_path, 20)
    with pytest.raises(CheckpointDamagedError, match="bytes 0 to"):
        UnreadFile(storage, "f", record)


@pytest.mark.parametrize("left", [0, CHUNK_BYTES, CHUNK_BYTES + 1, -1])
def test_a_file_that_was_cut_off_is_damage(tmp_path, left):
    storage, data, record = written(tmp_path)
    file = UnreadFile(storage, "f", record)
    with open(tmp_path / "f", "r+b") as opened:
        opened.truncate(left % record.size)
    with pytest.raises(CheckpointDamagedError, match="do not match their checksum"):
        file.fill(memory(data))


def test_a_file_that_is_gone_is_damage(tmp_path):
    storage, data, record = written(tmp_path)
    file = UnreadFile(storage, "f", record)
    storage.delete("f")
    with pytest.raises(CheckpointDamagedError, match="f is gone"):
        file.fill(memory(data))
    with pytest.raises(CheckpointDamagedError, match="f is gone"):
        UnreadFile(storage, "f", record)


class Scattering(LocalStorage):
    """Calls ``meddle`` with the place of each chunk that is scattered, and what it filled."""

    meddle = staticmethod(lambda offset, buffers: None)

    def scatter_from(self, path):
        return scattering.scatter_from(_OneWay(self), path)


class _OneWay:
    def __init__(self, storage):
        self._storage, self.url = storage, storage.url

    def read_into(self, path, buffer, offset=0):
        count = self._storage.read_into(path, buffer, offset)
        self._storage.meddle(offset, buffer)
        return count


def test_what_was_garbled_on_the_way_is_read_again(tmp_path, caplog):
    storage, data, record = written(tmp_path)
    storage, garbled = Scattering(storage.url), []

    def garble(offset, buffer):
        if offset == CHUNK_BYTES and not garbled:
            garbled.append(offset)
            buffer[9] ^= 1

    storage.meddle = garble
    into = memory(data)
    UnreadFile(storage, "f", record).fill(into)
    assert into == data
    assert f"f: bytes {CHUNK_BYTES} to {2 * CHUNK_BYTES} were garbled on the way" in caplog.text


def test_an_error_of_one_thread_is_the_readers_error(tmp_path):
    """Not damage: the bytes may be whole, and the checkpoint is not to be set aside."""
    storage, data, record = written(tmp_path)
    storage, error = Scattering(storage.url), OSError(errno.EIO, "Input/output error")

    def fail(offset, buffer):
        if offset == 2 * CHUNK_BYTES:
            raise error

    storage.meddle = fail
    with pytest.raises(OSError, match="Input/output") as caught:
        UnreadFile(storage, "f", record).fill(memory(data))
    assert caught.value is error


def test_chunks_are_read_at_the_same_time(tmp_path):
    storage, data, record = written(tmp_path)
    storage, both, into = Scattering(storage.url), threading.Barrier(2), memory(data)
    file = UnreadFile(storage, "f", record)

    def meet(offset, buffer):
        if offset in (CHUNK_BYTES, 2 * CHUNK_BYTES):
            both.wait(60)  # one after the other, the first would wait in vain

    storage.meddle = meet
    file.fill(into)
    assert into == data


def test_no_byte_is_read_twice(tmp_path):
    storage, data, record = written(tmp_path)
    storage, places = Scattering(storage.url), []
    storage.meddle = lambda offset, buffer: places.append((offset, len(buffer)))
    UnreadFile(storage, "f", record).fill(memory(data))
    assert sorted(places) == [
        (begin, min(CHUNK_BYTES, record.size - begin))
        for begin in range(0, record.size, CHUNK_BYTES)
    ]


def test_bytes_of_no_tensor_are_noticed(tmp_path):
    storage, _, _ = written(tmp_path)
    file = (tmp_path / "f").read_bytes() + b"x"
    storage.write("longer", [file])
    assert not UnreadFile(storage, "longer", record_of(file)).is_dense
