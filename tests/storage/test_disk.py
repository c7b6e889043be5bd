"""Groups of files: whole on return, gone after an error, whatever their sizes and alignment."""

import errno
import fcntl
import mmap
import os
import threading

import pytest

from trainkit.storage import LocalStorage, disk, largepages
from trainkit.storage.disk import NewFile

MIB = 1 << 20
SIZES = [0, 1, 4095, 4096, MIB - 1, MIB, MIB + 4096, 17 * MIB + 123]


def filled(size, *, aligned=True):
    """Bytes that begin on a page boundary, or one byte after it."""
    memory = mmap.mmap(-1, size + 4096)
    start = 0 if aligned else 1
    view = memoryview(memory)[start : start + size]
    view[:] = (b"%07d\n" % size * (size // 8 + 1))[:size]
    return view


@pytest.fixture(params=["large pages", "small pages"])
def pages(request, monkeypatch):
    """With and without large pages to send bytes from."""
    if request.param == "small pages":
        monkeypatch.setattr(largepages, "_are_there", lambda: False)
    elif not largepages._are_there():
        pytest.skip("the kernel gives no large pages here")


def write_files(files):
    disk.write_files(
        [NewFile(path, memoryview(data), lambda *_: None) for path, data in files.items()]
    )


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.usefixtures("pages")
def test_files_of_all_sizes(tmp_path, aligned):
    files = {tmp_path / str(size): filled(size, aligned=aligned) for size in SIZES}
    write_files(files)
    for path, data in files.items():
        assert path.read_bytes() == data
    assert len(os.listdir(tmp_path)) == len(SIZES)


@pytest.mark.usefixtures("pages")
def test_read_only_bytes(tmp_path):
    data = b"x" * (2 * MIB + 5)
    write_files({tmp_path / "a": data})
    assert (tmp_path / "a").read_bytes() == data


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize("refusal", ["flag", "request"])
def test_where_the_page_cache_cannot_be_avoided(tmp_path, monkeypatch, refusal):
    """Some mounts refuse the flag, others take it and refuse the request."""
    real_fcntl, real_write, refused = fcntl.fcntl, os.pwrite, []

    def control(descriptor, command, *flags):
        if command == fcntl.F_SETFL and flags[0] & os.O_DIRECT and refusal == "flag":
            refused.append(True)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_fcntl(descriptor, command, *flags)

    def write(descriptor, data, offset):
        if refusal == "request" and real_fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(True)
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_write(descriptor, data, offset)

    monkeypatch.setattr(fcntl, "fcntl", control)
    monkeypatch.setattr(os, "pwrite", write)
    data = filled(9 * MIB + 1)
    write_files({tmp_path / "a": data})
    assert refused
    assert (tmp_path / "a").read_bytes() == data


def test_requests_that_are_refused_at_the_same_time(tmp_path, monkeypatch):
    """The first to hear of it goes on through the page cache, and so do those beside it."""
    real_write, together = os.pwrite, threading.Barrier(2)

    def write(descriptor, data, offset):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            together.wait(60)  # neither has taken the flag away yet
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    data = filled(2 * disk._SLICE)
    write_files({tmp_path / "a": data})
    assert (tmp_path / "a").read_bytes() == data


@pytest.mark.usefixtures("pages")
def test_writes_that_are_done_by_half_are_gone_on_with(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda fd, data, offset: real(fd, data[: max(1, len(data) // 3)], offset)
    )
    data = filled(3 * MIB + 77)
    write_files({tmp_path / "a": data, tmp_path / "b": b"small"})
    assert (tmp_path / "a").read_bytes() == data
    assert (tmp_path / "b").read_bytes() == b"small"


@pytest.mark.parametrize("at", range(6))
def test_after_an_error_none_of_them_is_there(tmp_path, monkeypatch, at):
    """The error of one request among several at a time is the caller's."""
    real, calls = os.pwrite, []

    def write(descriptor, data, offset):
        calls.append(offset)
        if len(calls) == at + 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    storage = LocalStorage(tmp_path)
    files = {"group/a": filled(20 * MIB), "group/b": filled(12 * MIB), "group/c": b"small"}
    with pytest.raises(OSError, match="Input/output error") as caught:
        storage.write_all(files)
    assert caught.value.errno == errno.EIO
    assert str(tmp_path / "group") in caught.value.filename
    assert storage.names("group") == []
    storage.write_all(files)
    assert storage.names("group") == ["a", "b", "c"]


def test_bytes_are_written_as_they_come(tmp_path, monkeypatch):
    """The first are on their way to the disk before the last are there."""
    data, whole, real = filled(20 * MIB + 5), filled(20 * MIB + 5), os.pwrite
    data[disk._SLICE :] = bytes(len(data) - disk._SLICE)
    asked, written = [], threading.Event()

    def write(descriptor, piece, offset):
        count = real(descriptor, piece, offset)
        written.set()
        return count

    def ready(path, begin, end):
        asked.append((path, begin, end))
        if begin >= disk._SLICE:
            assert written.wait(60)
            data[begin:end] = whole[begin:end]

    monkeypatch.setattr(os, "pwrite", write)
    LocalStorage(tmp_path).write_gradually({"a": data, "b": filled(3)}, ready)
    assert (tmp_path / "a").read_bytes() == whole
    assert {path for path, _, _ in asked} == {"a", "b"}


def test_bytes_that_do_not_come_leave_nothing(tmp_path):
    storage = LocalStorage(tmp_path)

    def ready(path, begin, end):
        if begin >= disk._SLICE:
            raise RuntimeError("they do not come")

    with pytest.raises(RuntimeError, match="they do not come"):
        storage.write_gradually({"a": filled(20 * MIB), "b": filled(1)}, ready)
    assert storage.names() == []


@pytest.mark.skipif(not largepages._are_there(), reason="the kernel gives no large pages here")
def test_buffers_lie_on_large_pages_and_are_used_again(tmp_path, monkeypatch):
    monkeypatch.setattr(largepages, "_free", [])
    found = {}
    for _ in range(3):
        with largepages.buffer() as one, largepages.buffer() as other:
            for buffer in (one, other):
                assert len(buffer) == largepages.BUFFER_BYTES
                assert largepages.address(buffer) % (2 * MIB) == 0
                found[largepages.address(buffer)] = buffer
    assert len(found) == 2
    write_files({tmp_path / str(i): filled(9 * MIB, aligned=False) for i in range(4)})
    assert len(largepages._free) <= 4


@pytest.mark.parametrize("aligned", [True, False])
def test_where_there_is_no_memory_for_a_buffer(tmp_path, monkeypatch, aligned):
    def none():
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(largepages, "_free", [])
    monkeypatch.setattr(largepages, "_are_there", lambda: True)
    monkeypatch.setattr(largepages, "_new", none)
    data = filled(9 * MIB + 5, aligned=aligned)
    write_files({tmp_path / "a": data})
    assert (tmp_path / "a").read_bytes() == data


def test_a_flush_that_fails_is_an_error(tmp_path, monkeypatch):
    def flush(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    storage = LocalStorage(tmp_path)
    storage.make_folder("group")
    monkeypatch.setattr(os, "fsync", flush)
    with pytest.raises(OSError, match="No space left"):
        storage.write_all({"group/a": filled(2 * MIB), "group/b": b"small"})
    assert storage.names("group") == []


def test_what_is_there_already_is_not_touched(tmp_path):
    storage = LocalStorage(tmp_path)
    storage.write_all({"group/a": b"old"})
    with pytest.raises(FileExistsError):
        storage.write_all({"group/b": b"new", "group/a": b"new"})
    assert storage.read("group/a") == b"old"
    assert storage.names("group") == ["a"]
