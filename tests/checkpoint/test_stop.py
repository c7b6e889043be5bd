"""A stop with little time: what is saved is what can be."""

import numpy as np
import pytest

from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.errors import Preempted
from trainkit.storage import LocalStorage

OPTIONS = CheckpointOptions(
    background=False, timeout=60.0, attempts=1, pause=0.01, visible_within=0.2
)


class Monitor:
    """Asked to stop, with ``left`` seconds until the kill."""

    def __init__(self):
        self.last_step = None
        self.stirred = False
        self.left = None

    def stop_now(self, step):
        return self.stirred

    def time_left(self):
        return self.left

    def notice(self, left):
        self.left, self.stirred = left, True


class Slow(LocalStorage):
    """Takes ten seconds for the commit, as a store far away does: by its clock."""

    now = 0.0

    def create(self, path, data):
        if path.endswith("MANIFEST.json"):
            Slow.now += 10.0
        super().create(path, data)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A manager whose saves to the root take ten seconds by a clock of its own."""
    monkeypatch.setattr("trainkit.checkpoint.manager.open_storage", Slow)
    monkeypatch.setattr("trainkit.waiting.time.monotonic", lambda: Slow.now)
    monitor = Monitor()

    def open_one(*, saved=True, **others):
        manager = CheckpointManager(
            tmp_path / "root",
            {"weights": np.zeros(10)},
            monitor=monitor,
            options=OPTIONS,
            **others,
        )
        if saved:
            manager.save(1)
        return manager

    return open_one, monitor


def test_enough_time(run):
    open_one, monitor = run
    manager = open_one()
    monitor.notice(30.0)
    with pytest.raises(Preempted, match=r"stopped after step 2 as asked; it is saved in"):
        manager.step(2)
    assert manager.all_steps() == [1, 2]
    manager.close()


def test_no_limit_is_known(run):
    open_one, monitor = run
    manager = open_one()
    monitor.notice(None)
    with pytest.raises(Preempted, match="it is saved in"):
        manager.step(2)
    manager.close()


def test_time_for_the_local_tier_alone(run, tmp_path):
    open_one, monitor = run
    manager = open_one(local_tier=tmp_path / "near")
    monitor.notice(5.0)
    with pytest.raises(Preempted, match="saved on this node alone"):
        manager.step(2)
    assert (manager.last_saved_step, manager.last_local_step) == (1, 2)
    manager.save_for_stop(2)  # as the end of ``run`` does with every manager
    manager.close()
    assert CheckpointManager(tmp_path / "root", {"weights": np.zeros(10)}).all_steps() == [1]
    again = open_one(saved=False, local_tier=tmp_path / "near")
    assert again.restore_latest() == 2
    again.close()


def test_no_time(run):
    open_one, monitor = run
    manager = open_one()
    monitor.notice(2.0)
    with pytest.raises(Preempted, match="no time to save it; step 1 is saved in"):
        manager.step(2)
    manager.save_for_stop(2)
    assert manager.all_steps() == [1]
    manager.close()


@pytest.mark.usefixtures("run")
def test_all_ranks_do_the_same(on_ranks, tmp_path):
    def rank(communicator):
        monitor = Monitor()
        manager = CheckpointManager(
            tmp_path / "root",
            {"weights": np.zeros(10)},
            communicator=communicator,
            monitor=monitor,
            options=OPTIONS,
        )
        manager.save(1)
        monitor.notice(2.0 if communicator.rank == 2 else 60.0)
        with pytest.raises(Preempted) as raised:
            manager.step(2)
        manager.close()
        return str(raised.value)

    results = on_ranks(3, rank)
    assert len(set(results)) == 1
    assert "no time to save it" in results[0]


def test_a_training_that_was_over_before_keeps_its_own_count(tmp_path):
    """The notice comes in step 4 of the training after it."""
    manager = CheckpointManager(tmp_path, {"weights": np.zeros(3)}, options=OPTIONS)
    manager.step(9)
    manager.save_for_stop(4)
    assert manager.all_steps() == [9]
    manager.save_for_stop(4)
    assert manager.all_steps() == [9]
    manager.close()
