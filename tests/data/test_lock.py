import errno
import fcntl
import os
import threading

import pytest

from trainkit.data.lock import node_lock
from trainkit.errors import DeadlineError
from trainkit.waiting import Deadline


def test_one_holder_at_a_time_and_no_file_left(tmp_path):
    target = tmp_path / "data"
    inside, most = 0, 0
    counting = threading.Lock()

    def enter():
        nonlocal inside, most
        with node_lock(target, Deadline(60.0)):
            with counting:
                inside += 1
                most = max(most, inside)
            os.sched_yield()
            with counting:
                inside -= 1

    threads = [threading.Thread(target=lambda: [enter() for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert list(tmp_path.iterdir()) == []


def test_a_deadline_ends_the_wait(tmp_path):
    target = tmp_path / "data"
    with (
        node_lock(target, Deadline(1.0)),
        pytest.raises(DeadlineError, match="If it hangs, end it"),
        node_lock(target, Deadline(0.01)),
    ):
        raise AssertionError("two held it")
    with node_lock(target, Deadline(1.0)):
        assert (tmp_path / ".data.lock").read_text().startswith(f"pid {os.getpid()} on ")


def test_file_systems_without_locks_are_gone_on_with(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with node_lock(tmp_path / "data", Deadline(1.0)):
        assert list(tmp_path.iterdir()) == []


def test_other_faults_are_not_hidden(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output"), node_lock(tmp_path / "data", Deadline(1.0)):
        raise AssertionError("held without a lock")
