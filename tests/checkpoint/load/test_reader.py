"""Large files are read by several threads; what is wrong anywhere in them is found, and named."""

import errno
import random
import threading

import pytest

from tests.checkpoint.admin.checkpoints import Root, f32
from trainkit.checkpoint.format.checksums import CHUNK_BYTES, ChunkHasher
from trainkit.checkpoint.load.files import read_verified
from trainkit.checkpoint.load.reader import StepReader
from trainkit.errors import CheckpointDamagedError, NoPermissionError
from trainkit.storage import LocalStorage

SIZES = [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 3 * CHUNK_BYTES, 5 * CHUNK_BYTES + 17]


def written(folder, size):
    """A storage with one file ``data``, its bytes, and its record."""
    data = random.Random(size).randbytes(size)
    hasher, storage = ChunkHasher(), LocalStorage(folder)
    storage.write("data", hasher.passing([data]))
    return storage, data, hasher.record


@pytest.mark.parametrize("size", SIZES)
def test_all_bytes_come_back_in_memory_of_ones_own(tmp_path, size):
    storage, data, record = written(tmp_path, size)
    found = read_verified(storage, "data", record)
    assert found == data
    found[:1] = b"\0"[: len(found)]
    assert storage.read("data") == data


@pytest.mark.parametrize("chunk", range(6))
def test_a_wrong_byte_in_any_chunk_is_found_and_its_place_named(tmp_path, chunk):
    storage, data, record = written(tmp_path, SIZES[-1])
    place = min((chunk + 1) * CHUNK_BYTES, len(data)) - 1
    with open(tmp_path / "data", "r+b") as file:
        file.seek(place)
        file.write(bytes([data[place] ^ 1]))
    with pytest.raises(CheckpointDamagedError, match=f"data: bytes {chunk * CHUNK_BYTES} to "):
        read_verified(storage, "data", record)


@pytest.mark.parametrize("left", [0, 1, CHUNK_BYTES, 2 * CHUNK_BYTES - 1, SIZES[-1] - 1])
def test_a_file_that_was_cut_off_is_an_error_and_no_signal(tmp_path, left):
    storage, _, record = written(tmp_path, SIZES[-1])
    with open(tmp_path / "data", "r+b") as file:
        file.truncate(left)
    with pytest.raises(CheckpointDamagedError, match="do not match their checksum"):
        read_verified(storage, "data", record)


def test_a_file_that_is_gone_is_damage(tmp_path):
    storage, _, record = written(tmp_path, SIZES[-1])
    storage.delete("data")
    with pytest.raises(CheckpointDamagedError, match="data is gone"):
        read_verified(storage, "data", record)


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), NoPermissionError(errno.EACCES, "refused")]
)
def test_an_error_of_one_thread_is_the_readers_error(tmp_path, monkeypatch, error):
    """Not damage: the bytes may be whole, and the checkpoint is not to be set aside."""
    storage, _, record = written(tmp_path, SIZES[-1])
    read_into = storage.read_into

    def fail(path, buffer, offset=0):
        if offset == 2 * CHUNK_BYTES:
            raise error
        return read_into(path, buffer, offset)

    monkeypatch.setattr(storage, "read_into", fail)
    with pytest.raises(type(error)) as caught:
        read_verified(storage, "data", record)
    assert caught.value is error


def test_chunks_are_read_at_the_same_time(tmp_path, monkeypatch):
    storage, data, record = written(tmp_path, 2 * CHUNK_BYTES)
    read_into, both = storage.read_into, threading.Barrier(2)

    def meet(path, buffer, offset=0):
        both.wait(60)  # one after the other, the first would wait in vain
        return read_into(path, buffer, offset)

    monkeypatch.setattr(storage, "read_into", meet)
    assert read_verified(storage, "data", record) == data


def test_a_small_file_costs_no_thread(tmp_path, monkeypatch):
    storage, data, record = written(tmp_path, CHUNK_BYTES)
    read_into, threads = storage.read_into, []

    def note(path, buffer, offset=0):
        threads.append(threading.current_thread())
        return read_into(path, buffer, offset)

    monkeypatch.setattr(storage, "read_into", note)
    assert read_verified(storage, "data", record) == data
    assert threads == [threading.main_thread()]


def test_a_document_that_is_split_reads_as_a_whole_one(tmp_path):
    root = Root(tmp_path)
    model = {name: f32(ord(name)) for name in "abcde"}
    one, several = root.save(1, model=model), root.save(2, model=model, parts=3)
    read = [StepReader(root.storage, folder).document("model/model") for folder in (one, several)]
    for saved in read:
        assert saved.json is None
        assert {name: bytes(t.data) for name, t in saved.tensors.items()} == {
            name: source.load() for name, source in model.items()
        }
