"""Large objects that S3 puts together from older ones; a real server."""

import os

import pytest

from trainkit.storage import Likeness, ObjectStorage
from trainkit.storage.copies import can_copy, send_changed

MIB = 1 << 20


@pytest.fixture(scope="module")
def old():
    return os.urandom(40 * MIB)


@pytest.fixture
def store(s3, monkeypatch):
    """A storage, and the bytes that were sent in bodies of requests."""
    storage = ObjectStorage(s3)
    sent = []
    call = storage._fs.call_s3

    def counting(method, **arguments):
        sent.append(len(arguments.get("Body", b"")))
        return call(method, **arguments)

    monkeypatch.setattr(storage._fs, "call_s3", counting)
    storage.sent = sent
    yield storage
    assert open_uploads(storage) == []


def open_uploads(storage):
    bucket = storage._root.split("/")[0]
    found = storage._fs.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads", [])
    return [upload["Key"] for upload in found if upload["Key"].startswith(storage._root[6:])]


def changed(old, *places):
    new = bytearray(old)
    for place in places:
        new[place] ^= 1
    return bytes(new)


@pytest.mark.parametrize(
    ("places", "ranges", "sent"),
    [
        ([], [(0, 40)], 0),
        ([20 * MIB], [(0, 16), (24, 40)], 8),
        ([0], [(8, 40)], 8),
        ([39 * MIB], [(0, 32)], 8),
        ([0, 39 * MIB], [(8, 32)], 16),
        ([3 * MIB], [(0, 2), (4, 40)], 5),  # S3 takes no smaller part
    ],
)
def test_only_what_changed_is_sent(store, old, places, ranges, sent):
    store.write_all({"old": old})
    store.sent.clear()
    new = changed(old, *places)
    likeness = Likeness("old", tuple((a * MIB, b * MIB) for a, b in ranges))
    store.write_all({"new": new}, {"new": likeness})
    assert store.read("new") == new
    assert sum(store.sent) == sent * MIB
    store.delete("old")
    assert store.read("new") == new  # it depends on nothing


def test_where_the_older_object_is_gone_all_is_sent(store, old):
    store.write_all({"new": old}, {"new": Likeness("old", ((0, 40 * MIB),))})
    assert store.read("new") == old


def test_an_object_that_exists_stays(store, old):
    store.write_all({"old": old, "new": old})
    new = changed(old, 0)
    with pytest.raises(FileExistsError):
        store.write_all({"new": new}, {"new": Likeness("old", ((8 * MIB, 40 * MIB),))})
    assert store.read("new") == old


def test_small_ones_are_sent_as_they_are(store):
    store.write_all({"old": b"abc"})
    store.write_all({"new": b"abd"}, {"new": Likeness("old", ((0, 2),))})
    assert store.read("new") == b"abd"


def test_an_error_leaves_nothing_behind(store, old):
    store.write_all({"old": old})
    fs, keys = store._fs, [f"{store._root}/{name}" for name in ("new", "old")]
    with pytest.raises(OSError):  # noqa: PT011 - the store's own text
        # Longer than the older object is.
        send_changed(fs, keys[0], old * 2, keys[1], Likeness("old", ((0, 80 * MIB),)))
    assert store.size("new") is None


def test_other_stores_get_all(tmp_path):
    storage = ObjectStorage("memory://likeness/test")
    assert not can_copy(storage._fs)
    data = bytes(9 * MIB)
    storage.write_all({"old": data})
    storage.write_all({"new": data}, {"new": Likeness("old", ((0, 9 * MIB),))})
    assert storage.read("new") == data
    storage.delete("")
