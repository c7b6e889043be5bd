import errno

import pytest

from trainkit.errors import (
    DataError,
    DeadlineError,
    ExitCode,
    PeerLostError,
    Preempted,
    RetryableError,
    UsageError,
)
from trainkit.lifecycle.causes import exit_code_of, hint_for, is_peer_loss, is_watchdog_abort


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (DataError("x"), 65),
        (DeadlineError("x"), 138),
        (Preempted("x"), 143),
        (Preempted("x", exit_code=ExitCode.INTERRUPTED), 130),
        (ValueError("x"), 70),
        (KeyboardInterrupt(), 130),
        (SystemExit(3), 3),
        (SystemExit(None), 0),
        (SystemExit("message"), 1),
        (RuntimeError("Connection closed by peer [10.0.0.1]:123"), 138),
        (RuntimeError("shapes do not match"), 70),
        (OSError(errno.EIO, "Input/output error"), 138),
        (OSError(errno.ESTALE, "Stale file handle"), 138),
        (FileNotFoundError(errno.ENOENT, "No such file"), 70),
        (RuntimeError("NCCL error: Duplicate GPU detected"), 78),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), 138),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), 70),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), 70),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), 138),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. "), 70),
    ],
)
def test_exit_codes(error, code):
    assert exit_code_of(error) == code


def test_a_lost_peer_beneath_another_error_counts():
    error = ValueError("in the user's wrapper")
    error.__cause__ = RuntimeError("Connection reset by peer")
    assert exit_code_of(error) == 138
    assert "another rank" in hint_for(error)


def test_preempted_passes_through_except_exception():
    def swallow_everything():
        try:
            raise Preempted("stop")
        except Exception:
            return "swallowed"

    with pytest.raises(SystemExit) as stop:
        swallow_everything()
    assert stop.value.code == 143


def test_a_full_disk_is_said():
    assert "disk is full" in hint_for(OSError(errno.ENOSPC, "No space left on device"))


def test_a_chain_of_causes_that_goes_in_a_circle():
    error, other = ValueError("a"), ValueError("b")
    error.__cause__, other.__cause__ = other, error
    assert exit_code_of(error) == 70
    assert hint_for(error) == ""


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (PeerLostError("rank 1"), True),
        (DeadlineError("rank 1"), True),
        (RetryableError("the store of checkpoints"), False),
        (DataError("connection closed by peer"), False),
        (RuntimeError("Connection closed by peer"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (type("DistBackendError", (RuntimeError,), {})("x"), True),
    ],
)
def test_which_errors_are_those_of_a_peer(error, lost):
    assert is_peer_loss(error) is lost


@pytest.mark.parametrize(
    ("output", "is_one"),
    [
        ("[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1", True),
        ("Some NCCL operations have failed or timed out. Due to the asynchronous nature", True),
        ("ProcessGroupNCCL's watchdog got stuck for 480 seconds without making progress", True),
        ("Process group watchdog thread terminated with exception: NCCL error: remote", True),
        ("Process group watchdog thread terminated with exception: CUDA error: illegal", False),
        ("Process group watchdog thread terminated normally", False),
        ("a watchdog of the user's barked", False),
        ("", False),
    ],
)
def test_the_watchdog_of_collectives(output, is_one):
    assert is_watchdog_abort(output) is is_one
