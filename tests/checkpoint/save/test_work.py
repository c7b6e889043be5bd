"""What of a save is not sent again, since the save before has it."""

import random
from dataclasses import replace

import pytest

from trainkit.checkpoint.format.checksums import CHUNK_BYTES, record_of
from trainkit.checkpoint.format.layout import StepFolder
from trainkit.checkpoint.save.job import Job
from trainkit.checkpoint.save.work import put_views
from trainkit.storage import Likeness, LocalStorage

BEFORE = Job(
    folder=StepFolder(1, 1, 0),
    rank=0,
    world_size=1,
    division="",
    entries={},
    metrics={},
    written_by="a test",
    timeout=10.0,
    attempts=1,
    pause=0.0,
)
AFTER = replace(BEFORE, folder=StepFolder(2, 1, 1), like=BEFORE.folder.name)


class Noting:
    """Takes whole objects, as a bucket does, and notes what it was told of older ones."""

    def __init__(self, folder):
        self._local = LocalStorage(folder)
        self.url = self._local.url

    def write_all(self, files, alike=None):
        self.alike = alike
        self._local.write_all(files)


@pytest.fixture
def storage(tmp_path):
    return Noting(tmp_path)


@pytest.fixture
def views():
    return {
        "model/model.safetensors": memoryview(bytearray(3 * CHUNK_BYTES)),
        "state/table.json": memoryview(b"{}"),
    }


def test_the_first_save_is_like_nothing(storage, views):
    put_views(storage, BEFORE, views)
    assert storage.alike is None


def test_what_did_not_change_is_named(storage, views):
    before = put_views(storage, BEFORE, views)
    views["model/model.safetensors"][CHUNK_BYTES] = 1
    views["state/table.json"] = memoryview(b"[]")
    views["state/new.json"] = memoryview(b"[]")
    records = put_views(storage, AFTER, views, before)
    assert storage.alike == {
        f"{AFTER.folder.name}/model/model.safetensors": Likeness(
            f"{BEFORE.folder.name}/model/model.safetensors",
            ((0, CHUNK_BYTES), (2 * CHUNK_BYTES, 3 * CHUNK_BYTES)),
        )
    }
    assert records == put_views(LocalStorage(storage.url + "/other"), AFTER, views)


def test_a_save_that_was_not_committed_is_not_relied_on(storage, views):
    before = put_views(storage, BEFORE, views)
    put_views(storage, replace(AFTER, like=None), views, before)
    assert not storage.alike


@pytest.mark.parametrize("kind", [Noting, LocalStorage])
def test_bytes_are_waited_for_and_hashed_as_they_are_then(tmp_path, kind, views):
    """Also those that no request of its own is made for, at the end of a file."""
    late = {path: bytes(view) for path, view in views.items()}
    late["model/model.safetensors"] = random.Random(0).randbytes(2 * CHUNK_BYTES + 5)
    coming = {path: memoryview(bytearray(len(data))) for path, data in late.items()}

    def ready(path, begin, end):
        coming[path][begin:end] = late[path][begin:end]

    records = put_views(kind(tmp_path / "a"), BEFORE, coming, ready=ready)
    assert records == {path: record_of(data) for path, data in late.items()}
    for path, data in late.items():
        assert (tmp_path / "a" / BEFORE.folder.name / path).read_bytes() == data
