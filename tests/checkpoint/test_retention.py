"""Policies of what stays, each a function of a list."""

import math
from datetime import UTC, datetime, timedelta

import pytest

from trainkit.checkpoint import (
    CheckpointManager,
    KeepAny,
    KeepBest,
    KeepEvery,
    KeepLast,
    KeepNewer,
    RetentionPolicy,
    SavedStep,
)
from trainkit.errors import UsageError

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def saved(*steps, loss=None, age=None):
    """Checkpoints, newest first."""
    loss, age = loss or {}, age or {}
    return [
        SavedStep(
            step,
            NOW - timedelta(seconds=age.get(step, 0)),
            {"loss": loss[step]} if step in loss else {},
            100,
            pinned=False,
        )
        for step in steps
    ]


def test_the_last_are_the_first_of_the_list():
    assert list(KeepLast(2).keep(saved(40, 30, 20))) == [40, 30]
    assert list(KeepLast(5).keep(saved(40, 30))) == [40, 30]
    assert list(KeepLast(2).keep(saved(7, 30, 20))) == [7, 30]  # after going back to step 6
    assert list(KeepLast(1).keep([])) == []


def test_the_best_are_finite_and_of_equal_ones_the_newest():
    loss = {10: 0.5, 20: 0.25, 30: math.nan, 40: 0.25, 60: -math.inf, 70: math.inf}
    some = saved(70, 60, 50, 40, 30, 20, 10, loss=loss)
    assert list(KeepBest("loss").keep(some)) == [40]
    assert list(KeepBest("loss", 2).keep(some)) == [40, 20]
    assert list(KeepBest("loss", 9).keep(some)) == [40, 20, 10]
    assert list(KeepBest("loss", mode="max").keep(some)) == [10]


def test_a_metric_that_nothing_has_is_said_once(caplog):
    policy = KeepBest("los")
    assert list(policy.keep([])) == []
    assert caplog.text == ""
    for _ in range(3):
        assert list(policy.keep(saved(2, 1, loss={1: 0.5}))) == []
    assert len(caplog.records) == 1
    assert "no checkpoint has a finite metric 'los' (metrics saved: loss)" in caplog.text


def test_every_nth_is_the_first_at_or_after_each_multiple():
    assert set(KeepEvery(100).keep(saved(300, 250, 200, 150, 100, 50, 0))) == {100, 200, 300}
    assert set(KeepEvery(100).keep(saved(290, 240, 190, 110, 70))) == {110, 240}
    assert set(KeepEvery(1).keep(saved(3, 2, 1))) == {1, 2, 3}


def test_every_nth_holds_one_for_each_stretch_as_others_go():
    """What it gives up once it never needs again, whatever steps are saved."""
    there = []
    for step in range(7, 1000, 13):
        there = [step, *there]
        kept = set(KeepEvery(100).keep(saved(*there)))
        there = [s for s in there if s in kept or s == step]
    firsts = {min(s for s in range(7, 1000, 13) if s >= m) for m in range(100, 1000, 100)}
    assert set(there) == firsts | {step}


def test_newer_than_goes_by_the_clock_and_spares_the_future():
    some = saved(40, 30, 20, 10, age={40: -3600, 30: 59, 20: 60, 10: 1e6})
    assert list(KeepNewer(60, clock=NOW.timestamp).keep(some)) == [40, 30]


def test_any_of_several():
    some = saved(40, 30, 20, 10, loss={10: 0.1, 20: 0.2})
    assert KeepAny(KeepLast(1), KeepBest("loss"), KeepEvery(20)).keep(some) == {40, 10, 20}
    assert KeepAny().keep(some) == set()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: KeepLast(0), r"KeepLast\(0\)"),
        (lambda: KeepBest("loss", 0), r"KeepBest\('loss', 0\)"),
        (lambda: KeepBest("loss", mode="least"), "expected min or max"),
        (lambda: KeepEvery(0), r"KeepEvery\(0\)"),
        (lambda: KeepNewer(0), r"KeepNewer\(0\)"),
        (lambda: KeepNewer(math.nan), r"KeepNewer\(nan\)"),
    ],
)
def test_numbers_out_of_range(make, words):
    with pytest.raises(UsageError, match=words):
        make()


@pytest.mark.parametrize("keep", ["3", 2.5, None, KeepLast, [KeepLast(3)]])
def test_what_is_no_policy_is_refused(tmp_path, keep):
    with pytest.raises(UsageError, match=r"keep=.*: expected a number, or a policy"):
        CheckpointManager(tmp_path, {}, keep=keep)


def test_a_policy_is_anything_with_the_method():
    class Even:
        def keep(self, saved):
            return [one.step for one in saved if one.step % 2 == 0]

    assert isinstance(Even(), RetentionPolicy)
