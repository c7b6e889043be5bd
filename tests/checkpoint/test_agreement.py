"""What fails on one rank fails on all, with an error of the same kind."""

import errno

import pytest

from trainkit.checkpoint.agreement import on_all_ranks
from trainkit.checkpoint.failure import Failure
from trainkit.checkpoint.format.manifest import TornManifestError
from trainkit.errors import (
    CheckpointDamagedError,
    DeadlineError,
    EnvironmentFaultError,
    NoPermissionError,
    Preempted,
    UsageError,
)


def test_results_come_by_rank(on_ranks):
    def rank(communicator):
        return on_all_ranks(communicator, lambda: communicator.rank * 2, timeout=30).check()

    assert on_ranks(3, rank) == [[0, 2, 4]] * 3


@pytest.mark.parametrize(
    ("error", "kind", "is_io"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), OSError, True),
        (NoPermissionError(errno.EACCES, "Permission denied", "/x"), NoPermissionError, False),
        (EnvironmentFaultError("other model"), EnvironmentFaultError, False),
        (TornManifestError("cut off"), CheckpointDamagedError, False),
        (DeadlineError("late"), DeadlineError, False),
        (UsageError("wrong"), UsageError, False),
        (ZeroDivisionError("user's"), RuntimeError, False),
    ],
)
def test_the_rank_that_failed_keeps_its_error_and_others_get_one_like_it(
    on_ranks, error, kind, is_io
):
    def rank(communicator):
        def action():
            if communicator.rank == 1:
                raise error

        outcome = on_all_ranks(communicator, action, timeout=30)
        assert outcome.io_only is is_io
        outcome.check()

    results = on_ranks(3, rank)
    assert results[1] is error
    for other in (results[0], results[2]):
        assert isinstance(other, kind)
        assert "rank 1 failed" in str(other)
        number = getattr(error, "errno", None)
        assert str(error).removeprefix(f"[Errno {number}] ") in str(other)
        assert getattr(other, "errno", None) == (error.errno if is_io else None)


def test_each_rank_that_failed_keeps_its_own(on_ranks):
    def rank(communicator):
        def action():
            if communicator.rank:
                raise OSError(errno.EIO, f"own {communicator.rank}")

        on_all_ranks(communicator, action, timeout=30).check()

    results = on_ranks(3, rank)
    assert ["own 1" in str(error) for error in results] == [True, True, False]


def test_io_only_needs_all_failures_to_be_io(on_ranks):
    def rank(communicator):
        def action():
            if communicator.rank == 0:
                raise OSError(errno.EIO, "disk")
            raise UsageError("state")

        return on_all_ranks(communicator, action, timeout=30).io_only

    assert on_ranks(2, rank) == [False, False]


def test_a_stop_passes_through(on_ranks):
    def rank(communicator):
        def action():
            raise Preempted("now")

        on_all_ranks(communicator, action, timeout=30)

    assert isinstance(on_ranks(1, rank)[0], Preempted)


def test_every_error_of_trainkit_can_be_told_to_others():
    from trainkit import errors

    for name in errors.__all__:
        cls = getattr(errors, name)
        if isinstance(cls, type) and issubclass(cls, errors.TrainkitError):
            told = Failure.of(3, cls("text")).as_error(0)
            assert type(told) is cls
            assert "text" in str(told)
