from concurrent.futures import ThreadPoolExecutor

import pytest

from trainkit.coordination import MemoryStore
from trainkit.coordination.join import Greeting, join
from trainkit.errors import DeadlineError, EnvironmentFaultError, RetryableError
from trainkit.waiting import Deadline


def join_all(store, world_sizes, seconds=30.0):
    with ThreadPoolExecutor(len(world_sizes)) as pool:
        waiting = [
            pool.submit(join, store, rank, world, Deadline(seconds))
            for rank, world in enumerate(world_sizes)
        ]
        return [future.exception() or future.result() for future in waiting]


def test_all_ranks_get_one_prefix():
    prefixes = join_all(MemoryStore(), [4] * 4)
    assert len(set(prefixes)) == 1


def test_each_round_gets_a_prefix_of_its_own_though_the_store_is_the_same():
    store = MemoryStore()
    rounds = [join_all(store, [3] * 3) for _ in range(5)]
    assert all(len(set(prefixes)) == 1 for prefixes in rounds)
    assert len({prefixes[0] for prefixes in rounds}) == 5


def test_greetings_of_a_dead_attempt_do_not_count():
    store = MemoryStore()
    # An earlier attempt in which ranks 1 and 2 greeted, and then everything was killed.
    for rank in (1, 2):
        store.set(f"join/greeting/{rank}", Greeting.of_this_process(3).dump())
        store.add("join/events", 1)
    with pytest.raises(DeadlineError, match="missing: rank 1, 2"):
        join(store, 0, 3, Deadline(0.3))
    assert len(set(join_all(store, [3] * 3))) == 1


def test_greetings_of_an_earlier_world_of_another_size_do_not_count():
    """Members left under an elastic launcher: the same store, fewer ranks."""
    store = MemoryStore()
    assert len(set(join_all(store, [3] * 3))) == 1
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(join, store, 0, 2, Deadline(60))
        while Greeting.load(store.get("join/greeting/0")).world_size != 2:
            pass
        second = pool.submit(join, store, 1, 2, Deadline(60))
        assert first.result() == second.result()


def test_a_rank_that_confirmed_a_dead_round_joins_the_next():
    store = MemoryStore()
    with ThreadPoolExecutor(3) as pool:
        waiting = pool.submit(join, store, 1, 3, Deadline(30))
        with pytest.raises(DeadlineError, match="rank 2"):
            join(store, 0, 3, Deadline(0.5))  # rank 1 confirms this one, rank 2 never comes
        again = pool.submit(join, store, 0, 3, Deadline(30))
        late = pool.submit(join, store, 2, 3, Deadline(30))
        assert waiting.result() == again.result() == late.result()


def test_a_missing_rank_is_named_on_every_rank():
    store = MemoryStore()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(join, store, rank, 3, Deadline(0.5)) for rank in (0, 2)]
        for future in waiting:
            with pytest.raises(DeadlineError, match="missing: rank 1"):
                future.result()


def test_different_world_sizes_are_an_error_that_names_both():
    results = join_all(MemoryStore(), [4, 8], seconds=5)
    assert all(isinstance(error, EnvironmentFaultError) for error in results)
    assert "counts 4" in str(results[1])
    assert "counts 8" in str(results[1])


def test_two_processes_with_one_rank_are_told_apart():
    store = MemoryStore()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(join, store, 1, 3, Deadline(20))
        while store.get("join/greeting/1") is None:
            pass
        second = pool.submit(join, store, 1, 3, Deadline(1))
        with pytest.raises(RetryableError, match="two processes claim rank 1"):
            first.result()
        with pytest.raises(DeadlineError):
            second.result()
