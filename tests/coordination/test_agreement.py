import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from trainkit.coordination import MemoryStore, StepAgreement
from trainkit.errors import DeadlineError


def test_a_quiet_step_sends_nothing():
    store = MemoryStore()
    agreement = StepAgreement(store, 0, 2, timeout=1)
    assert not any(agreement.reached(step) for step in range(1, 100))
    assert store._values == {}


def test_the_highest_entered_step_wins():
    store = MemoryStore()
    ahead = StepAgreement(store, 0, 2, timeout=10)
    behind = StepAgreement(store, 1, 2, timeout=10)
    for step in range(1, 8):
        assert not ahead.reached(step)  # has entered step 8
    for step in range(1, 6):
        assert not behind.reached(step)  # has entered step 6
    behind.propose()
    ahead.look()
    assert [behind.reached(step) for step in (6, 7, 8)] == [False, False, True]
    assert ahead.reached(8)


def test_a_rank_that_does_not_answer_is_named():
    agreement = StepAgreement(MemoryStore(), 0, 3, timeout=0.1)
    agreement.propose()
    with pytest.raises(DeadlineError, match="missing: rank 1, 2"):
        agreement.reached(1)


@pytest.mark.parametrize("seed", range(40))
def test_ranks_that_meet_in_every_step_stop_at_the_same_one(seed):
    """A collective in each step, a notice at a random moment on a random rank."""
    chance = random.Random(seed)
    world_size = 3
    store = MemoryStore()
    collective = threading.Barrier(world_size)
    agreements = [StepAgreement(store, r, world_size, timeout=30) for r in range(world_size)]
    over = threading.Event()

    def watch(agreement):
        while not over.wait(0.0005):
            agreement.look()

    def train(agreement):
        for step in range(1, 10_000):
            collective.wait(30)
            if agreement.reached(step):
                return step
        return None

    def notice(agreement):
        over.wait(chance.random() * 0.01)
        agreement.propose()

    with ThreadPoolExecutor(2 * world_size + 1) as pool:
        watchers = [pool.submit(watch, agreement) for agreement in agreements]
        trainers = [pool.submit(train, agreement) for agreement in agreements]
        pool.submit(notice, chance.choice(agreements))
        stopped = [trainer.result(60) for trainer in trainers]
        over.set()
        for watcher in watchers:
            watcher.result(60)
    assert len(set(stopped)) == 1
    assert stopped[0] is not None
