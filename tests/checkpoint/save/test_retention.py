"""What stays: the newest valid ones, always at least one, and nothing is lost to a failure."""

import shutil

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trainkit.checkpoint import CheckpointManager
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
