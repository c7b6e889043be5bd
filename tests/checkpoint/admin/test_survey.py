"""A whole root at one glance: true states, and a number of requests that does not grow."""

import math
import time
from collections import Counter

import pytest

from tests.checkpoint.admin.checkpoints import Counting, Root, aside, flip
from trainkit.checkpoint.admin.survey import State, survey
from trainkit.checkpoint.format import manifest, pins
from trainkit.checkpoint.format.layout import StepFolder
from trainkit.checkpoint.save.retention import remove_step
from trainkit.errors import InputMissingError, NoPermissionError
from trainkit.storage import ObjectStorage, open_storage


def test_newest_save_first_with_what_the_manifest_says(root, disk):
    root.save(100, metrics={"loss": 2.5, "worst": math.nan}, world_size=3, age=3600)
    root.save(200)
    root.save(150, generation=2)
    newest, second, oldest = survey(root.storage)
    assert [s.folder.step for s in (newest, second, oldest)] == [150, 200, 100]
    assert oldest.state is State.COMMITTED
    assert oldest.metrics["loss"] == 2.5
    assert math.isnan(oldest.metrics["worst"])
    assert oldest.world_size == 3
    assert 3600 <= time.time() - oldest.written < 3660 + 60
    folder = disk / oldest.folder.name
    assert oldest.size == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_every_state(root, disk):
    folders = [root.save(step) for step in range(1, 8)]
    (disk / folders[0].name / "state" / "progress.json").unlink()
    with (disk / folders[1].name / "model" / "model.safetensors").open("ab") as file:
        file.write(b"x")
    flip(disk / folders[2].name / "MANIFEST.json", 20)
    (disk / folders[3].name / "MANIFEST.json").unlink()
    aside(root.storage, folders[4])
    pins.pin(root.storage, folders[5])
    (disk / "step-0000000008.g01-0009" / "model").mkdir(parents=True)
    found = {summary.folder.step: summary for summary in survey(root.storage)}
    assert {step: summary.state for step, summary in found.items()} == {
        1: State.DAMAGED,
        2: State.DAMAGED,
        3: State.DAMAGED,
        4: State.UNCOMMITTED,
        5: State.QUARANTINED,
        6: State.COMMITTED,
        7: State.COMMITTED,
        8: State.UNCOMMITTED,
    }
    assert found[1].reason.startswith("state/progress.json is missing; the manifest lists")
    assert "model/model.safetensors has " in found[2].reason
    assert found[3].reason == "the manifest does not match its own hash"
    assert found[4].world_size is None
    assert found[5].reason == "a bad disk"
    assert [step for step, summary in found.items() if summary.pinned] == [6]
    assert (found[8].size, found[8].world_size) == (0, None)


def test_a_newer_format_is_not_damage(root, disk, monkeypatch):
    monkeypatch.setattr(manifest, "FORMAT", "tkc/9")
    root.save(1)
    monkeypatch.undo()
    (summary,) = survey(root.storage)
    assert summary.state is State.UNREADABLE
    assert "'tkc/9'" in summary.reason


def test_a_thousand_checkpoints_take_one_listing_and_a_read_each(root):
    for step in range(1000):
        root.save(step, metrics={"loss": step})
    storage = Counting(root.storage)
    assert len(survey(storage)) == 1000
    assert storage.calls == {"tree": 1, "read": 1000}


def test_so_they_do_in_an_object_store(s3):
    root = Root(ObjectStorage(s3))  # boto tells what it asks
    for step in range(5):
        root.save(step, commit=step != 3)
    aside(root.storage, StepFolder(4, 1, 4))
    asked = Counter()
    client = root.storage._fs.s3
    client.meta.events.register("before-call.s3", lambda model, **_: asked.update([model.name]))
    found = {summary.folder.step: summary.state for summary in survey(root.storage)}
    assert found == {
        0: State.COMMITTED,
        1: State.COMMITTED,
        2: State.COMMITTED,
        3: State.UNCOMMITTED,
        4: State.QUARANTINED,
    }
    # 4 manifests, and the mark of the one in quarantine.
    assert asked == {"ListObjectsV2": 1, "GetObject": 5}


def test_uncommitted_ones_cost_no_read_and_damaged_ones_one_look_more(root, disk):
    folders = [root.save(step, commit=step != 2) for step in (1, 2, 3)]
    (disk / folders[2].name / "state" / "progress.json").unlink()
    storage = Counting(root.storage)
    survey(storage)
    assert storage.calls == {"tree": 1, "read": 2, "size": 1}


def test_what_retention_removes_meanwhile_is_left_out(root):
    folders = [root.save(step) for step in (1, 2)]
    tree = root.storage.tree

    class Removing(Counting):
        def tree(self, folder=""):
            found = tree(folder)
            remove_step(root.storage, folders[0])
            return found

    assert [s.folder.step for s in survey(Removing(root.storage))] == [2]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({}, "holds no checkpoints: expected step-"),
        ({"README": b""}, "holds no checkpoints: expected step-"),
        ({".metadata": b"", "__0_0.distcp": b""}, "holds .metadata and no step-"),
        ({"model.safetensors": b""}, "not a folder of trainkit checkpoints"),
        ({"MANIFEST.json": b""}, "is the folder of one step"),
    ],
)
def test_other_folders_are_explained(root, made, said):
    for name, data in made.items():
        root.storage.write(name, [data])
    with pytest.raises(InputMissingError, match=said):
        survey(root.storage)


def test_a_file_is_no_root(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputMissingError, match="is a file"):
        survey(open_storage(tmp_path / "file"))


def test_a_refusal_is_no_damage(root):
    root.save(1)

    class Refusing(Counting):
        def read(self, path):
            raise NoPermissionError(13, "Permission denied", path)

    with pytest.raises(NoPermissionError):
        survey(Refusing(root.storage))
