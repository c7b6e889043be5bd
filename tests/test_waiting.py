import itertools
import logging

import pytest

from trainkit import waiting
from trainkit.errors import DeadlineError
from trainkit.waiting import Deadline, backoff, wait_until


def test_what_the_condition_returns_is_returned():
    answers = iter([None, 0, "here"])
    assert wait_until(lambda: next(answers), what="it", deadline=Deadline(60)) == "here"


def test_a_deadline_names_what_whom_and_what_to_do():
    with pytest.raises(DeadlineError) as failure:
        wait_until(
            lambda: False,
            what="the mount",
            whom=lambda: "rank 3",
            deadline=Deadline(0.01),
            hint="Look at the pod.",
        )
    assert str(failure.value) == (
        "gave up waiting for the mount (rank 3): 0 s of 0 s. Look at the pod."
    )


def test_a_condition_that_holds_at_the_last_moment_counts():
    assert wait_until(lambda: True, what="it", deadline=Deadline(0))


def test_a_long_wait_says_so_at_growing_distances(monkeypatch, caplog):
    clock = itertools.count(step=0.5)
    monkeypatch.setattr(waiting.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(waiting.time, "sleep", lambda seconds: None)
    with caplog.at_level(logging.WARNING), pytest.raises(DeadlineError):
        wait_until(lambda: False, what="the master", deadline=Deadline(60))
    assert len(caplog.records) == 4  # after 5, 10, 20 and 40 seconds
    assert all("waiting for the master" in record.message for record in caplog.records)


def test_pauses_grow_to_a_limit():
    pauses = list(itertools.islice(backoff(0.1, 1.0, 2), 6))
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
