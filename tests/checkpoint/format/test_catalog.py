"""What counts in a root, and which folders are somebody else's."""

import pytest

from trainkit.checkpoint import CheckpointManager
from trainkit.checkpoint.format import catalog
from trainkit.errors import EnvironmentFaultError
from trainkit.storage import LocalStorage


@pytest.fixture
def root(tmp_path, box):
    manager = CheckpointManager(tmp_path, {"box": box(1)})
    for step in (1, 2, 3):
        manager.save(step, blocking=True)
    return tmp_path


def folder(root, step):
    return next(root.glob(f"step-{step:010d}.*"))


def test_newest_first_and_uncommitted_apart(root):
    (folder(root, 2) / "MANIFEST.json").unlink()
    storage = LocalStorage(root)
    assert [f.step for f in catalog.committed(storage)] == [3, 1]
    assert [f.step for f in catalog.uncommitted(storage)] == [2]


@pytest.mark.parametrize("damage", ["missing", "longer", "shorter", "manifest", "renamed"])
def test_only_whole_ones_are_valid(root, damage):
    path = folder(root, 3) / "state" / "box.json"
    if damage == "missing":
        path.unlink()
    elif damage == "longer":
        path.write_bytes(path.read_bytes() + b" ")
    elif damage == "shorter":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "manifest":
        (folder(root, 3) / "MANIFEST.json").write_text("{}")
    else:
        folder(root, 3).rename(root / "step-0000000009.g01-0009")
    assert [f.step for f, _ in catalog.valid(LocalStorage(root))] == [2, 1]


def test_quarantine_marks_and_removes_nothing(root):
    storage = LocalStorage(root)
    before = sorted(folder(root, 3).rglob("*"))
    catalog.quarantine(storage, catalog.committed(storage)[0], "bad")
    catalog.quarantine(storage, catalog.committed(storage, set_aside=True)[0], "bad again")
    assert [f.step for f in catalog.committed(storage)] == [2, 1]
    assert [f.step for f in catalog.committed(storage, set_aside=True)] == [3, 2, 1]
    assert sorted(folder(root, 3).rglob("*")) == before


def test_only_steps_and_dot_names_lie_in_the_root(root):
    assert all(p.name.startswith(("step-", ".")) for p in root.iterdir())


@pytest.mark.parametrize("name", ["model.safetensors", ".metadata", "__0_0.distcp", "last.ckpt"])
def test_a_folder_of_another_kind_is_refused(tmp_path, box, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(EnvironmentFaultError, match="not a folder of trainkit checkpoints"):
        CheckpointManager(tmp_path, {"box": box()})


def test_the_folder_of_one_step_is_refused_and_its_parent_asked_for(root, box):
    with pytest.raises(EnvironmentFaultError, match="one above it"):
        CheckpointManager(folder(root, 3), {"box": box()})


def test_a_file_is_refused(tmp_path, box):
    (tmp_path / "file").write_text("x")
    with pytest.raises(EnvironmentFaultError, match="is a file"):
        CheckpointManager(tmp_path / "file", {"box": box()})


def test_what_a_new_volume_holds_is_borne(tmp_path, box):
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "tensorboard").mkdir()
    CheckpointManager(tmp_path, {"box": box(1)}).save(1)
    assert CheckpointManager(tmp_path, {"box": box()}).restore_latest() == 1
