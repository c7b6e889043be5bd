"""What of a save is not sent again, since the save before has it."""

from dataclasses import replace

import pytest

from trainkit.checkpoint.format.checksums import CHUNK_BYTES
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


class Noting(LocalStorage):
    """Notes what it was told of older objects."""

    def write_all(self, files, alike=None):
        self.alike = alike
        super().write_all(files)


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
