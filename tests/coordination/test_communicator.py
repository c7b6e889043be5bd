import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from trainkit.coordination import Communicator, MemoryStore
from trainkit.errors import DeadlineError


def each_rank(world_size, act, timeout=30.0):
    """Run ``act(communicator)`` in one thread a rank over one store."""
    store = MemoryStore()
    ranks = [Communicator(store, r, world_size, timeout=timeout) for r in range(world_size)]
    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(act, ranks)), store


def test_gather_is_in_rank_order():
    results, _ = each_rank(3, lambda c: c.all_gather_object({"rank": c.rank}))
    assert results == [[{"rank": 0}, {"rank": 1}, {"rank": 2}]] * 3


def test_broadcast_gives_everybody_the_source_object():
    results, _ = each_rank(3, lambda c: c.broadcast_object(c.rank * 10, src=2))
    assert results == [20, 20, 20]


def test_barrier_lets_nobody_through_before_all_are_there():
    here = []
    lock = threading.Lock()

    def act(communicator):
        with lock:
            here.append(communicator.rank)
        communicator.barrier()
        with lock:
            return len(here)

    results, _ = each_rank(4, act)
    assert results == [4] * 4


def test_barrier_names_the_missing_ranks_and_what_it_was_for():
    communicator = Communicator(MemoryStore(), 1, 4, timeout=0.05)
    with pytest.raises(DeadlineError, match=r"saving step 7.*rank\(s\) 0, 2, 3 of 4"):
        communicator.barrier("saving step 7")


def test_keys_of_finished_calls_are_forgotten():
    def act(communicator):
        for _ in range(5):
            communicator.barrier()
            communicator.all_gather_object(1)

    _, store = each_rank(2, act)
    assert store._values == {}


def test_named_communicators_of_two_threads_do_not_mix():
    def act(communicator):
        other = communicator.named("other")
        with ThreadPoolExecutor(2) as pool:
            mine = pool.submit(communicator.all_gather_object, "main")
            theirs = pool.submit(other.all_gather_object, "other")
            return mine.result(), theirs.result()

    results, _ = each_rank(2, act)
    assert results == [(["main"] * 2, ["other"] * 2)] * 2


def test_solo_needs_nobody():
    solo = Communicator.solo()
    solo.barrier()
    assert solo.all_gather_object(5) == [5]
    assert solo.broadcast_object(6) == 6
