"""What counts in a root, and which folders are somebody else's."""

from collections import Counter

import pytest

from trainkit.checkpoint import CheckpointManager
from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.checksums import FileRecord, digest
from trainkit.checkpoint.format.layout import MANIFEST, StepFolder
from trainkit.checkpoint.format.manifest import Manifest
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
    CheckpointManager(tmp_path, {"box": box(1)}).save(1, blocking=True)
    assert CheckpointManager(tmp_path, {"box": box()}).restore_latest() == 1


class CountingStorage(LocalStorage):
    """Counts what is asked of it; on an object store each is a request, or one a page."""

    def __init__(self, root):
        super().__init__(root)
        self.asked = Counter()

    def names(self, folder=""):
        self.asked["listings"] += 1
        return super().names(folder)

    def tree(self, folder=""):
        self.asked["listings"] += 1
        return super().tree(folder)

    def read(self, path):
        self.asked["reads"] += 1
        return super().read(path)

    def size(self, path):
        self.asked["sizes"] += 1
        return super().size(path)


def many(root, steps):
    """Checkpoints of ``steps``, each with ten files."""
    storage = LocalStorage(root)
    record = FileRecord(1, (digest(b"x"),))
    for attempt, step in enumerate(steps):
        folder = StepFolder(step, 1, attempt)
        files = {f"state/{number}.json": record for number in range(10)}
        for path in files:
            storage.make_folder(f"{folder.name}/state")
            (root / folder.name / path).write_bytes(b"x")
        manifest = Manifest(step, 1, attempt, 1, "2026-11-25T00:00:00+00:00", "test", files, {})
        (root / folder.name / MANIFEST).write_bytes(manifest.to_bytes())
    return CountingStorage(root)


def test_the_newest_step_takes_the_same_few_requests_among_many(tmp_path):
    for count in (1, 100):
        storage = many(tmp_path / str(count), range(count))
        folder, _ = next(catalog.valid(storage))
        assert folder.step == count - 1
        assert storage.asked == {"listings": 2, "reads": 1}


def test_looking_at_all_of_them_takes_one_read_each_and_few_listings(tmp_path):
    for count in (60, 120):
        storage = many(tmp_path / str(count), range(count))
        assert [f.step for f, _ in catalog.valid(storage)] == [*range(count - 1, -1, -1)]
        assert storage.asked == {"listings": 2 + 16, "reads": count}


def test_what_is_committed_among_many_takes_no_request_each(tmp_path):
    storage = many(tmp_path, range(60))
    for step in (59, 7):
        (folder(tmp_path, step) / MANIFEST).unlink()
    catalog.quarantine(storage, StepFolder(30, 1, 30), "bad")
    storage.asked.clear()
    found = catalog.look(storage)
    assert storage.asked == {"listings": 3}
    assert [f.step for f in found.committed] == [n for n in range(58, -1, -1) if n not in (30, 7)]
    assert [f.step for f in found.set_aside] == [30]
    assert [f.step for f in found.uncommitted] == [59, 7]
    assert [f.step for f, _ in catalog.valid(storage)] == [f.step for f in found.committed]


@pytest.mark.parametrize("step", [59, 7])
def test_damage_is_found_one_by_one_and_among_many(tmp_path, step):
    storage = many(tmp_path, range(60))
    (folder(tmp_path, step) / "state" / "3.json").write_bytes(b"xx")
    found = [f.step for f, _ in catalog.valid(storage)]
    assert found == [n for n in range(59, -1, -1) if n != step]


def test_a_listing_that_is_older_than_the_files_is_no_damage(tmp_path, monkeypatch):
    """A network mount may list for a while what was there before."""
    storage = many(tmp_path, [1])
    tree = storage.tree
    monkeypatch.setattr(storage, "tree", lambda folder="": dict([*tree(folder).items()][:3]))
    assert [f.step for f, _ in catalog.valid(storage)] == [1]
