import pytest

from trainkit.coordination import MemoryStore, StepAgreement
from trainkit.errors import DeadlineError


def test_nobody_is_asked_until_one_proposes():
    store = MemoryStore()
    one, other = (StepAgreement(store, rank, 2, timeout=1) for rank in range(2))
    assert not one.asked()
    assert store._values == {}
    other.propose()
    assert one.asked()
    assert other.asked()


def test_the_highest_entered_step_wins():
    store = MemoryStore()
    ahead = StepAgreement(store, 0, 2, timeout=10)
    behind = StepAgreement(store, 1, 2, timeout=10)
    behind.publish(6)
    ahead.publish(8)
    assert [behind.reached(step) for step in (6, 7, 8)] == [False, False, True]
    assert ahead.reached(8)


def test_who_has_left_is_not_waited_for():
    store = MemoryStore()
    one, other, third = (StepAgreement(store, rank, 3, timeout=10) for rank in range(3))
    one.publish(5)
    other.publish(0)
    other.leave()  # after all, since it was asked to stop itself
    assert one.reached(5)
    third.publish(4)
    assert third.reached(4)
    assert one.left == third.left == (1,)


def test_who_leaves_after_the_others_have_agreed_is_known_when_they_stop():
    store = MemoryStore()
    one, other = (StepAgreement(store, rank, 2, timeout=10) for rank in range(2))
    one.publish(5)
    other.publish(6)
    assert not one.reached(4)
    other.leave()
    assert one.reached(5)
    assert one.left == (1,)


def test_a_rank_that_does_not_answer_is_named():
    agreement = StepAgreement(MemoryStore(), 0, 3, timeout=0.1)
    agreement.publish(2)
    with pytest.raises(DeadlineError, match="missing: rank 1, 2"):
        agreement.reached(1)
