"""Policies: small functions of a step and a clock."""

import pytest

from trainkit.checkpoint import AnyOf, EverySeconds, EverySteps, SavePolicy
from trainkit.checkpoint.policy import next_look
from trainkit.errors import UsageError


def test_every_steps_saves_at_multiples_and_looks_only_there():
    policy = EverySteps(10)
    assert [s for s in range(1, 31) if policy.should_save(s, 0.0)] == [10, 20, 30]
    assert [policy.next_look(s, 0.0, 0.0) for s in (0, 9, 10, 11)] == [10, 10, 20, 20]
    assert policy.deterministic


def test_every_seconds_counts_from_the_first_question():
    policy = EverySeconds(60)
    asked = [(1, 1000.0), (2, 1059.9), (3, 1060.0), (4, 1061.0), (5, 1120.0)]
    assert [step for step, now in asked if policy.should_save(step, now)] == [3, 5]
    assert not policy.deterministic


def test_every_seconds_looks_again_half_way():
    policy = EverySeconds(100)
    policy.should_save(10, 0.0)
    assert policy.next_look(10, 0.0, 1.0) == 60
    assert policy.next_look(90, 80.0, 1.0) == 100
    assert policy.next_look(99, 99.9, 1.0) == 100
    assert policy.next_look(5, 50.0, 0.0) == 6  # no pace known yet


def test_any_of_joins_them():
    policy = AnyOf(EverySteps(4), EverySteps(6))
    assert [s for s in range(1, 13) if policy.should_save(s, 0.0)] == [4, 6, 8, 12]
    assert policy.next_look(4, 0.0, 0.0) == 6
    assert policy.deterministic
    assert not AnyOf(EverySteps(4), EverySeconds(1)).deterministic


def test_any_of_asks_all_of_them_each_time():
    """A clock that is not asked while another policy says yes would never start."""
    policy = AnyOf(EverySteps(1), clock := EverySeconds(10))
    policy.should_save(1, 0.0)
    assert clock.should_save(2, 10.0)


def test_any_of_nothing_never_saves():
    policy = AnyOf()
    assert not policy.should_save(1, 0.0)
    assert policy.next_look(1, 0.0, 0.0) > 1000


def test_a_policy_of_one_method_is_asked_at_each_step():
    class Mine:
        deterministic = True

        def should_save(self, step, now):
            return step == 3

    assert isinstance(Mine(), SavePolicy)
    assert next_look(Mine(), 7, 0.0, 0.0) == 8


@pytest.mark.parametrize("make", [lambda: EverySteps(0), lambda: EverySeconds(0)])
def test_intervals_of_nothing_are_refused(make):
    with pytest.raises(UsageError, match="expected"):
        make()
