"""What stays: the newest valid ones, always at least one, and nothing is lost to a failure."""

import math
import shutil
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trainkit.checkpoint import (
    CheckpointManager,
    KeepAny,
    KeepBest,
    KeepEvery,
    KeepLast,
    plan_removals,
    remove_step,
)
from trainkit.checkpoint.format.catalog import quarantine, step_folders
from trainkit.checkpoint.format.checksums import FileRecord, digest
from trainkit.checkpoint.format.layout import StepFolder
from trainkit.checkpoint.format.manifest import Manifest
from trainkit.checkpoint.format.pins import pin, unpin
from trainkit.checkpoint.save.retention import Retention
from trainkit.storage import LocalStorage


def folder(root, step):
    return sorted(root.glob(f"step-{step:010d}.*"))[-1]


def steps_on_disk(root):
    return sorted(int(p.name[5:15]) for p in root.glob("step-*"))


def test_the_newest_stay(tmp_path, box):
    manager = CheckpointManager(tmp_path, {"box": box(0)}, keep=2)
    for step in (1, 2, 3, 4):
        manager.save(step, blocking=True)
    assert steps_on_disk(tmp_path) == manager.all_steps() == [3, 4]


def test_damaged_ones_do_not_count(tmp_path, box):
    manager = CheckpointManager(tmp_path, {"box": box(0)}, keep=2)
    manager.save(1, blocking=True)
    manager.save(2, blocking=True)
    (folder(tmp_path, 2) / "state" / "box.json").unlink()
    manager.save(3, blocking=True)
    assert manager.all_steps() == [1, 3]
    assert steps_on_disk(tmp_path) == [1, 2, 3]  # newer than what is kept: left to look at
    manager.save(4, blocking=True)
    assert steps_on_disk(tmp_path) == [3, 4]


def test_what_was_set_aside_takes_no_others_place(tmp_path, box):
    manager = CheckpointManager(tmp_path, {"box": box(0)}, keep=2)
    manager.save(1, blocking=True)
    manager.save(2, blocking=True)
    quarantine(LocalStorage(tmp_path), step_folders(LocalStorage(tmp_path))[0], "a test says so")
    manager.save(3, blocking=True)
    assert steps_on_disk(tmp_path) == [1, 2, 3]
    manager.save(4, blocking=True)
    assert steps_on_disk(tmp_path) == [3, 4]


def test_while_fewer_than_keep_are_valid_nothing_goes(tmp_path, box):
    manager = CheckpointManager(tmp_path, {"box": box(0)}, keep=2)
    manager.save(1, blocking=True)
    (folder(tmp_path, 1) / "state" / "box.json").unlink()
    manager.save(2, blocking=True)
    assert steps_on_disk(tmp_path) == [1, 2]


def test_marks_go_with_what_they_mark(tmp_path, box):
    manager = CheckpointManager(tmp_path, {"box": box(0)}, keep=1)
    manager.save(1, blocking=True)
    path = folder(tmp_path, 1) / "state" / "box.json"
    manager.save(2, blocking=True)
    assert not path.exists()
    damaged = folder(tmp_path, 2) / "state" / "box.json"
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    with pytest.raises(ValueError, match="no checkpoint that is whole"):
        CheckpointManager(tmp_path, {"box": box()}).restore_latest()
    assert len(list((tmp_path / ".quarantine").iterdir())) == 1
    manager.save(3, blocking=True)
    assert steps_on_disk(tmp_path) == [3]
    assert list((tmp_path / ".quarantine").iterdir()) == []


def test_a_step_that_is_saved_again_counts_once(tmp_path, box):
    manager = CheckpointManager(tmp_path, {"box": (it := box(0))}, keep=2)
    for value, step in enumerate((1, 2, 2, 2)):
        it.value = value
        manager.save(step, blocking=True)
    assert steps_on_disk(tmp_path) == [1, 2]
    CheckpointManager(tmp_path, {"box": (back := box())}).restore_latest()
    assert back.value == 3


def test_after_going_back_the_newest_are_those_saved_last(tmp_path, box):
    manager = CheckpointManager(tmp_path, {"box": box(0)}, keep=2)
    for step in (300, 400, 500):
        manager.save(step, blocking=True)
    again = CheckpointManager(tmp_path, {"box": box()}, keep=2)
    again.restore(400)
    again.save(410, blocking=True)
    assert again.latest_step() == 410
    assert again.all_steps() == [410, 500]
    again.save(420, blocking=True)
    assert again.all_steps() == [410, 420]


def test_what_was_cut_off_goes_once_a_later_run_has_saved(tmp_path, box):
    manager = CheckpointManager(tmp_path, {"box": box(0)})
    manager.save(1, blocking=True)
    manager.save(2, blocking=True)
    (folder(tmp_path, 2) / "MANIFEST.json").unlink()
    later = CheckpointManager(tmp_path, {"box": box(0)})
    assert later.restore_latest() == 1
    assert steps_on_disk(tmp_path) == [1, 2]
    later.save(3, blocking=True)
    assert steps_on_disk(tmp_path) == [1, 3]


def test_a_removal_that_fails_costs_space_and_no_save(tmp_path, box, monkeypatch, caplog):
    manager = CheckpointManager(tmp_path, {"box": box(0)}, keep=1)
    manager.save(1, blocking=True)

    def refuse(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(LocalStorage, "delete", refuse)
    manager.save(2, blocking=True)
    assert "old checkpoints could not be removed" in caplog.text
    assert manager.last_saved_step == 2


def test_a_folder_removed_by_half_is_no_checkpoint(tmp_path, box, monkeypatch):
    manager = CheckpointManager(tmp_path, {"box": box(0)}, keep=1)
    manager.save(1, blocking=True)
    monkeypatch.setattr(shutil, "rmtree", lambda *_: (_ for _ in ()).throw(OSError(5, "EIO")))
    manager.save(2, blocking=True)
    assert not (folder(tmp_path, 1) / "MANIFEST.json").exists()
    assert manager.all_steps() == [2]


def test_the_best_and_the_last(tmp_path, box):
    policy = KeepAny(KeepLast(2), KeepBest("loss"))
    manager = CheckpointManager(tmp_path, {"box": box(0)}, keep=policy)
    for step, loss in enumerate((0.9, 0.1, math.nan, 0.5, None, 0.4), 1):
        manager.save(step, metrics={} if loss is None else {"loss": loss}, blocking=True)
    assert steps_on_disk(tmp_path) == [2, 5, 6]
    manager.save(7, metrics={"loss": 0.1}, blocking=True)
    assert steps_on_disk(tmp_path) == [6, 7]


def test_the_newest_stays_whatever_the_policy_says(tmp_path, box):
    manager = CheckpointManager(tmp_path, {"box": box(0)}, keep=KeepAny())
    for step in (1, 2, 3):
        manager.save(step, blocking=True)
        assert steps_on_disk(tmp_path) == [step]


def test_a_policy_that_raises_ends_nothing_and_removes_nothing(tmp_path, box, caplog):
    class Broken:
        def keep(self, saved):
            return [one.metrics["loss"] for one in saved]

    manager = CheckpointManager(tmp_path, {"box": box(0)}, keep=Broken())
    for step in (1, 2, 3):
        manager.save(step, blocking=True)
    assert steps_on_disk(tmp_path) == [1, 2, 3]
    assert "Broken object at" in caplog.text
    assert "raised KeyError('loss'), so nothing is removed" in caplog.text


def test_pinned_ones_stay_until_they_are_unpinned(tmp_path, box):
    storage = LocalStorage(tmp_path)
    manager = CheckpointManager(tmp_path, {"box": box(0)}, keep=1)
    manager.save(1, blocking=True)
    first = step_folders(storage)[0]
    pin(storage, first)
    for step in (2, 3):
        manager.save(step, blocking=True)
    assert steps_on_disk(tmp_path) == [1, 3]
    unpin(storage, first)
    manager.save(4, blocking=True)
    assert steps_on_disk(tmp_path) == [4]


def test_a_damaged_one_stays_while_it_would_be_kept_if_it_were_whole(tmp_path, box):
    manager = CheckpointManager(tmp_path, {"box": box(0)}, keep=KeepEvery(10))
    for step in (10, 15, 20):
        manager.save(step, blocking=True)
    for step in (10, 20):
        (folder(tmp_path, step) / "MANIFEST.json").write_bytes(b"{")
    again = CheckpointManager(tmp_path, {"box": box(0)}, keep=KeepEvery(10))
    again.save(21, blocking=True)
    assert steps_on_disk(tmp_path) == [10, 20, 21]
    again.save(22, blocking=True)
    assert steps_on_disk(tmp_path) == [10, 20, 21, 22]  # 21 is the first whole one after 20


def test_a_plan_changes_nothing_and_can_be_carried_out(tmp_path, box):
    manager = CheckpointManager(tmp_path, {"box": box(0)}, keep=9)
    for step in (1, 2, 3):
        manager.save(step, blocking=True)
    (folder(tmp_path, 2) / "state" / "box.json").unlink()
    storage = LocalStorage(tmp_path)
    cut_off = tmp_path / "step-0000000004.g01-0009"
    cut_off.mkdir()
    plan = plan_removals(storage, KeepLast(1))
    assert [(r.folder.step, r.reason) for r in plan] == [
        (2, "not kept"),
        (1, "not kept"),
    ]
    assert all(removal.num_bytes > 0 for removal in plan)
    assert steps_on_disk(tmp_path) == [1, 2, 3, 4]
    for removal in plan:
        remove_step(storage, removal.folder)
    assert steps_on_disk(tmp_path) == [3, 4]  # step 4 may be under way
    CheckpointManager(tmp_path, {"box": box(0)})  # the next run: now nobody can commit it
    assert [r.reason for r in plan_removals(storage, KeepLast(1))] == ["cut off"]


def test_where_a_later_run_has_saved_nothing_is_touched(tmp_path):
    storage = LocalStorage(tmp_path)
    for step in (1, 2, 3):
        commit(storage, StepFolder(step, 1, step), None)
    storage.make_folder("step-0000000004.g02-0000")
    assert Retention(storage, KeepLast(1), generation=1).apply() == []
    reasons = [r.reason for r in Retention(storage, KeepLast(1), generation=2).apply()]
    assert reasons == ["not kept", "not kept"]


def test_a_save_reads_the_manifests_that_are_new_alone(tmp_path):
    """Whatever the policy needs; only the newest three that stay are looked at again."""
    storage = Counting(tmp_path)
    for step in range(1, 101):
        commit(storage, StepFolder(step, 1, step), float(-step))
    retention = Retention(storage, KeepAny(KeepEvery(2), KeepBest("loss")), generation=1)
    assert len(retention.apply()) == 50
    storage.calls.clear()
    for step in (102, 104, 106):
        commit(storage, StepFolder(step, 1, step), None)
        storage.calls.clear()
        assert retention.apply() == []
        assert storage.calls == {"names": 3, "read": 1, "size": 1}
    commit(storage, StepFolder(107, 1, 107), None)
    retention.apply()
    commit(storage, StepFolder(108, 1, 108), None)
    storage.calls.clear()
    assert [r.folder.step for r in retention.apply()] == [107]
    assert storage.calls == {"names": 3, "read": 1 + 3, "size": 1, "tree": 3, "delete": 3}


def commit(storage, folder, loss):
    """Write a checkpoint of one file: what retention looks at, and no more."""
    data = b"x" * 10
    storage.write(f"{folder.name}/state/a.json", [data])
    manifest = Manifest(
        step=folder.step,
        generation=folder.generation,
        attempt=folder.attempt,
        world_size=1,
        created="2030-01-01T00:00:00+00:00",
        written_by="test",
        files={"state/a.json": FileRecord(len(data), (digest(data),))},
        entries={},
        metrics={} if loss is None else {"loss": loss},
    )
    storage.create(f"{folder.name}/MANIFEST.json", manifest.to_bytes())


class Counting(LocalStorage):
    """Counts its calls."""

    def __init__(self, root):
        super().__init__(root)
        self.calls = Counter()


for _name in ("names", "tree", "read", "size", "delete"):

    def _counted(self, *args, _name=_name):
        self.calls[_name] += 1
        return getattr(LocalStorage, _name)(self, *args)

    setattr(Counting, _name, _counted)


class Histories(RuleBasedStateMachine):
    """Saves, damage, restarts and returns in any order: the newest whole one is never lost."""

    keep = 2

    def __init__(self):
        super().__init__()
        import tempfile
        from pathlib import Path

        self.root = Path(tempfile.mkdtemp())
        self.step = 0
        self.whole = []  # values of committed and undamaged checkpoints, oldest first
        self.reopen()

    def teardown(self):
        shutil.rmtree(self.root)

    def reopen(self):
        self.state = {"value": 0}
        self.manager = CheckpointManager(self.root, {"state": self.state}, keep=self.keep)

    @rule()
    def save(self):
        self.step += 1
        self.state["value"] = self.step
        self.manager.save(self.step, blocking=True)
        self.whole.append(self.step)

    @rule()
    def restart(self):
        self.reopen()

    @precondition(lambda self: len(self.whole) > 1)
    @rule(which=st.sampled_from(["MANIFEST.json", "state/state.json", "ranks/rank00000.json"]))
    def damage_newest(self, which):
        file = folder(self.root, self.whole.pop()) / which
        file.write_bytes(file.read_bytes()[:-1])

    @precondition(lambda self: self.whole)
    @rule()
    def resume(self):
        self.reopen()
        assert self.manager.restore_latest() == self.whole[-1]
        assert self.state == {"value": self.whole[-1]}

    @invariant()
    def the_newest_whole_ones_are_there(self):
        kept = self.manager.all_steps()
        assert kept[-1:] == self.whole[-1:]
        self.whole = [step for step in self.whole if step in kept]


class TestHistories(Histories.TestCase):
    settings = settings(
        max_examples=25,
        stateful_step_count=15,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
