"""What there is time for before a kill."""

import pytest

from trainkit.checkpoint.save.pace import Pace, Plan


def pace(kept=(), uploaded=()):
    it = Pace()
    for seconds in kept:
        it.note(kept=seconds, uploaded=None)
    for seconds in uploaded:
        it.note(kept=None, uploaded=seconds)
    return it


@pytest.mark.parametrize(
    ("left", "plan"),
    [(30, Plan.UPLOAD), (12, Plan.UPLOAD), (11, Plan.KEEP), (2, Plan.KEEP), (1, Plan.SKIP)],
)
def test_by_the_time_that_is_left(left, plan):
    assert pace(kept=[1.0], uploaded=[10.0]).plan(left) is plan


@pytest.mark.parametrize(("left", "plan"), [(13, Plan.UPLOAD), (7, Plan.UPLOAD), (5, Plan.SKIP)])
def test_without_a_tier_what_may_just_do_is_tried(left, plan):
    assert pace(uploaded=[10.0]).plan(left) is plan


def test_nothing_measured_is_tried():
    assert pace().plan(0.0) is Plan.UPLOAD
    assert pace(kept=[1.0]).plan(0.0) is Plan.UPLOAD


def test_the_slowest_of_the_last_three_counts():
    it = pace(uploaded=[100.0, 1.0, 5.0, 2.0])
    assert it.upload == pytest.approx(6.0)
    assert it.keep is None
