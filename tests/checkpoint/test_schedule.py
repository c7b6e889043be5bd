"""All ranks save after the same steps, and quiet steps ask nobody."""

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from trainkit.checkpoint import AnyOf, EverySeconds, EverySteps
from trainkit.checkpoint.schedule import Schedule
from trainkit.coordination import Communicator


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def train(schedule, clock, paces):
    """Steps at which to save, and at which the policy was asked, given each step's seconds."""
    saves, looks = [], []
    for step, pace in enumerate(paces, start=1):
        clock.now += pace
        if step >= schedule.next_look:
            looks.append(step)
            if schedule.due(step):
                saves.append((step, clock.now))
    return saves, looks


def solo(policy):
    clock = Clock()
    return Schedule(policy, Communicator.solo(), timeout=1.0, clock=clock), clock


def test_steps_cost_a_look_only_when_one_is_due():
    schedule, clock = solo(EverySteps(100))
    saves, looks = train(schedule, clock, [0.1] * 1000)
    assert [step for step, _ in saves] == list(range(100, 1001, 100))
    assert looks == [1, *range(100, 1001, 100)]


def test_a_clock_is_asked_seldom_and_saves_in_time():
    schedule, clock = solo(EverySeconds(600))
    saves, looks = train(schedule, clock, [0.1] * 20_000)
    times = [now for _, now in saves]
    assert len(times) == 3
    assert all(b - a < 610 for a, b in itertools.pairwise([0, *times]))
    assert len(looks) < 110


def test_steps_that_seem_fast_at_first_do_not_put_a_save_off():
    """A host runs ahead of its device: the first steps take no time, the others a second."""
    schedule, clock = solo(EverySeconds(600))
    saves, _ = train(schedule, clock, [1e-6] * 50 + [1.0] * 3000)
    assert saves[0][1] < 720


@given(st.lists(st.sampled_from([1e-4, 0.01, 1.0]), min_size=1, max_size=20), st.randoms())
def test_whatever_the_pace_a_save_is_at_most_as_late_as_the_run_is_old(blocks, rng):
    paces = [pace for pace in blocks for _ in range(rng.randint(1, 300))]
    schedule, clock = solo(EverySeconds(60))
    saves, _ = train(schedule, clock, paces)
    times = itertools.accumulate(paces)
    due = next((step for step, now in enumerate(times, 1) if now - paces[0] >= 60.01), None)
    if due is not None and len(paces) > 2 * due + 2:
        assert saves
        assert saves[0][0] <= 2 * due + 2


def test_time_spent_saving_does_not_count():
    schedule, clock = solo(EverySeconds(10))
    step, saves = 0, []
    for step in range(1, 200):
        clock.now += 1.0
        if step >= schedule.next_look and schedule.due(step):
            saves.append(step)
            clock.now += 60.0  # storage slower than the interval
            schedule.stand_still(60.0)
    assert all(b - a >= 10 for a, b in itertools.pairwise(saves))


def test_a_restart_asks_at_once():
    schedule, _ = solo(EverySteps(100))
    schedule.due(100)
    assert schedule.next_look == 200
    schedule.restart()
    assert schedule.next_look == 0


def test_ranks_with_different_clocks_save_after_the_same_steps(on_ranks):
    def rank(communicator):
        rng = random.Random(communicator.rank)
        clock = Clock()
        policy = AnyOf(EverySteps(250), EverySeconds(20 + 20 * communicator.rank))
        schedule = Schedule(policy, communicator, timeout=30.0, clock=clock)
        return train(schedule, clock, [rng.uniform(0.01, 0.5) for _ in range(600)])

    results = on_ranks(3, rank)
    steps = [[step for step, _ in saves] for saves, _ in results]
    assert steps[0] == steps[1] == steps[2]
    assert {250, 500} < set(steps[0])
    assert results[0][1] == results[1][1] == results[2][1]
