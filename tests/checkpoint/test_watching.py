"""An evaluator that follows a run's checkpoints, in a folder on disk."""

import threading

import numpy as np
import pytest

from trainkit.checkpoint import CheckpointManager, CheckpointOptions

DEADLINE = 60.0


@pytest.fixture
def run(tmp_path):
    weights = np.zeros(8)
    manager = CheckpointManager(tmp_path / "run", {"weights": weights})

    def save(step):
        weights[:] = step
        manager.save(step, blocking=True)

    yield save
    manager.close()


@pytest.fixture
def evaluator(tmp_path):
    weights = np.full(8, -1.0)
    options = CheckpointOptions(read_only=True)
    manager = CheckpointManager(tmp_path / "run", {"weights": weights}, options=options)
    yield manager, weights
    manager.close()


def test_each_newest_one_is_restored_and_those_between_are_passed_over(run, evaluator):
    manager, weights = evaluator
    run(1)
    over = threading.Event()
    seen = []
    for step in manager.watch(poll=0.01, until=over.is_set):
        seen.append((step, weights[0]))
        if step == 1:
            run(2)
            run(3)
        elif step == 3:
            run(4)
            over.set()
    assert seen == [(1, 1.0), (3, 3.0), (4, 4.0)]


def test_it_waits_for_the_first_one(run, evaluator):
    manager, weights = evaluator
    found = []

    def follow():
        found.append((next(manager.watch(poll=0.01)), weights[0]))

    watching = threading.Thread(target=follow)
    watching.start()
    run(5)
    watching.join(DEADLINE)
    assert found == [(5, 5.0)]


def test_nothing_comes_where_nothing_was_saved(evaluator):
    manager, _ = evaluator
    assert list(manager.watch(poll=0.01, until=lambda: True)) == []
