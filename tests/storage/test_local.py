"""Local storage: exclusive, durable, named errors, and nothing outside its folder."""

import errno
import os
import random
import threading

import pytest

from trainkit.errors import DataError, InputMissingError, NoPermissionError
from trainkit.storage import LocalStorage


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(tmp_path / "root")


@pytest.fixture(params=["links", "no links"])
def any_storage(request, storage, monkeypatch):
    """The same storage with hard links, and on a mount that refuses them."""
    if request.param == "no links":

        def refuse(source, target):
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), str(target))

        monkeypatch.setattr(os, "link", refuse)
    storage.make_folder()
    return storage


def test_create_is_exclusive_and_leaves_nothing_else(any_storage):
    any_storage.create("a", b"first")
    with pytest.raises(FileExistsError):
        any_storage.create("a", b"second")
    assert any_storage.read("a") == b"first"
    assert any_storage.names() == ["a"]


def test_of_many_creators_one_wins(any_storage):
    start, won = threading.Barrier(8), []

    def race(number):
        start.wait()
        try:
            any_storage.create("a", b"%d" % number)
            won.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=race, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert any_storage.read("a") == b"%d" % won[0]


def test_a_link_whose_answer_was_lost_is_a_success(storage, monkeypatch):
    """NFS repeats a link that it has done already, and finds the name taken."""
    link = os.link

    def link_twice(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    storage.make_folder()
    storage.create("a", b"x")
    assert storage.read("a") == b"x"


def test_create_does_not_make_the_folder(storage):
    """Or a manifest could come back into a folder that another process has just removed."""
    with pytest.raises(InputMissingError):
        storage.create("gone/MANIFEST.json", b"{}")
    assert storage.names() == []


def test_write_makes_folders_and_is_write_once(storage):
    storage.write("a/b/c", [b"12", memoryview(b"34"), bytearray(b"5"), b""])
    assert storage.read("a/b/c") == b"12345"
    assert storage.size("a/b/c") == 5
    with pytest.raises(FileExistsError):
        storage.write("a/b/c", [b"x"])
    assert storage.read("a/b/c") == b"12345"


def test_a_write_that_fails_leaves_nothing(storage):
    def parts():
        yield b"some"
        raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        storage.write("a", parts())
    assert storage.size("a") is None


def test_files_and_their_folders_are_flushed(storage, monkeypatch):
    flushed = []
    fsync = os.fsync

    def record(descriptor):
        flushed.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    storage.make_folder("step")
    assert flushed[-1] == "root"  # the name of the new folder
    storage.write("step/data", [b"x"])
    assert flushed[-2:] == ["data", "step"]
    storage.create("step/MANIFEST.json", b"{}")
    assert flushed[-2].startswith(".MANIFEST.json.")
    assert flushed[-1] == "step"


def test_read_into_a_part(storage):
    storage.write("a", [b"0123456789"])
    buffer = memoryview(bytearray(4))
    assert storage.read_into("a", buffer, 3) == 4
    assert bytes(buffer) == b"3456"
    assert storage.read_into("a", buffer, 8) == 2


def buffers(*sizes):
    return [memoryview(bytearray(size)) for size in sizes]


def test_many_buffers_are_filled_one_after_the_other(storage):
    data = random.Random(0).randbytes(3 << 20)
    storage.write("a", [data])
    places = buffers(1, 0, *([7] * 3000), 2 << 20, 9)  # more than one call of the system takes
    with storage.scatter_from("a") as scatter:
        told = list(scatter(places, 5))
    joined = b"".join(places)
    assert joined == data[5 : 5 + len(joined)]
    assert told == sorted(told)
    assert told[-1] == len(places)
    assert len(told) == 4


def test_buffers_that_reach_beyond_the_end_are_not_called_full(storage):
    storage.write("a", [b"0123456789"])
    with storage.scatter_from("a") as scatter:
        assert list(scatter(buffers(4, 4, 4), 0)) == []
        assert list(scatter(buffers(4), 10)) == []
        assert list(scatter(buffers(0), 10)) == [1]
        assert list(scatter([], 0)) == []


def test_a_call_that_reads_less_than_asked_goes_on(storage, monkeypatch):
    """As a signal, or a network file system, may have it."""
    data, preadv = random.Random(0).randbytes(100), os.preadv
    storage.write("a", [data])

    def short(descriptor, left, offset):
        first = left[0][:3]
        return preadv(descriptor, [first], offset)

    monkeypatch.setattr(os, "preadv", short)
    places = buffers(5, 1, 3, 0, 91)
    with storage.scatter_from("a") as scatter:
        assert list(scatter(places, 0)) == [5]
    assert b"".join(places) == data


def test_scattering_names_the_file_in_its_errors_and_closes_it(storage, monkeypatch):
    def fail(descriptor, left, offset):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(InputMissingError, match="root/a"), storage.scatter_from("a"):
        pass
    storage.write("a", [b"x"])
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError, match="root/a"), storage.scatter_from("a") as scatter:
        list(scatter(buffers(1), 0))
    assert os.listdir("/proc/self/fd") == before


def test_names_sizes_and_delete(storage):
    assert storage.names() == []
    assert storage.names("nowhere") == []
    storage.write("b/x", [b"1"])
    storage.write("a", [b"1"])
    assert storage.names() == ["a", "b"]
    assert storage.size("b") is None  # a folder is no object
    assert storage.size("a/below-a-file") is None
    storage.delete("b")
    storage.delete("a")
    storage.delete("never-there")
    assert storage.names() == []


def test_delete_of_a_link_spares_its_target(storage, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    storage.make_folder()
    (tmp_path / "root" / "link").symlink_to(precious)
    storage.delete("link")
    assert (precious / "file").exists()


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/passwd", "a//b", "a/./b", "a\0b", "a/"]
)
@pytest.mark.parametrize("operation", ["read", "names", "size", "delete", "make_folder"])
def test_no_path_leaves_the_root(storage, operation, path):
    with pytest.raises(DataError, match="no path below"):
        getattr(storage, operation)(path)


def test_absence_and_refusal_are_trainkits_own_and_name_the_path(storage, monkeypatch):
    with pytest.raises(InputMissingError, match="root/nothing"):
        storage.read("nothing")

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    storage.make_folder()
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(NoPermissionError, match="root/a"):
        storage.write("a", [b"x"])


def test_a_read_only_mount_is_a_refusal(storage, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system", "x")

    monkeypatch.setattr(os, "open", refuse)
    storage_folder = storage.url
    os.makedirs(storage_folder)
    with pytest.raises(NoPermissionError):
        storage.write("a", [b"x"])


def test_other_errors_stay_and_name_the_path(storage, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    storage.make_folder()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="root/a") as caught:
        storage.write("a", [b"x"])
    assert caught.value.errno == errno.EIO
    assert not isinstance(caught.value, (InputMissingError, NoPermissionError))


def test_a_folder_that_cannot_be_flushed_is_borne(storage, monkeypatch):
    """FUSE and SMB mounts answer EINVAL to the fsync of a folder."""
    fsync = os.fsync

    def refuse_folders(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    storage.write("a/b", [b"x"])
    assert storage.read("a/b") == b"x"


def test_a_tree_is_all_files_below_with_size_and_time(storage, tmp_path):
    assert storage.tree() == storage.tree("a") == {}
    storage.write("a/b/c", [b"12345"])
    storage.write("a/d", [b""])
    storage.write("e", [b"1"])
    storage.make_folder("a/empty")
    tree = storage.tree()
    assert {path: info.size for path, info in tree.items()} == {
        "a/b/c": 5, "a/d": 0, "a/empty/": 0, "e": 1,
    }  # fmt: skip
    os.utime(tmp_path / "root" / "a" / "d", (1000, 1000))
    assert storage.tree("a")["d"].modified == 1000
    assert list(storage.tree("a")) == ["b/c", "d", "empty/"]


def test_what_is_removed_during_a_walk_is_left_out(storage, monkeypatch):
    storage.write("a/b", [b"1"])
    storage.write("c", [b"1"])
    stat = os.stat

    def look(path, **more):
        if path == storage.url:  # it has been listed by now
            monkeypatch.undo()
            storage.delete("a")
            storage.delete("c")
        return stat(path, **more)

    monkeypatch.setattr(os, "stat", look)
    assert storage.tree() == {}


def test_of_two_that_remove_a_folder_none_stops_half_way(storage, monkeypatch):
    for number in range(20):
        storage.write(f"a/{number}", [b"1"])
    unlink, taken = os.unlink, []

    def late(path, **more):
        if not taken:  # the other one was faster with this file
            taken.append(path)
            unlink(path, **more)
        unlink(path, **more)

    monkeypatch.setattr(os, "unlink", late)
    storage.delete("a")
    assert taken
    assert storage.names() == []


def test_nothing_lies_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    storage = LocalStorage(tmp_path)
    storage.delete("file/below")
    assert storage.size("file/below") is None
    storage.delete("file")
    assert storage.names() == []
