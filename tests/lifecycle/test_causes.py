import errno

import pytest

from trainkit.errors import DataError, DeadlineError, ExitCode, Preempted, UsageError
from trainkit.lifecycle.causes import exit_code_of, hint_for


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
