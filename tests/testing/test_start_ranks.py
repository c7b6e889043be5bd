"""Ranks that run while the test does something: signals, kills, and what is left of them."""

import os
import signal
import subprocess
import threading

import pytest

from trainkit.errors import DeadlineError
from trainkit.processes.table import process_table
from trainkit.testing import RanksFailed, RanksTimeout, start_ranks
from trainkit.waiting import Deadline, wait_until


def wait_ranks() -> None:
    print("ready", os.environ["RANK"])
    threading.Event().wait()


def orderly_ranks() -> str:
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    print("ready")
    asked.wait()
    return "stopped in order"


def with_children_ranks() -> None:
    """Leave a child in the group, one in a session of its own, and one without a parent."""
    sleep = ["sleep", "1000"]
    pids = [subprocess.Popen(sleep).pid, subprocess.Popen(sleep, start_new_session=True).pid]
    shell = "setsid sleep 1000 >/dev/null 2>&1 & echo $!"
    pids.append(int(subprocess.run(shell, shell=True, capture_output=True).stdout or 0))
    print("children", *pids)
    print("ready")
    if os.environ.get("LEAVE") != "yes":
        threading.Event().wait()


def quick_ranks() -> int:
    return 5


def alive(pid: int) -> bool:
    info = process_table().get(pid)
    return info is not None and not info.zombie


def test_handle_sees_a_rank_run_and_die():
    with start_ranks(wait_ranks, 2, preload=()) as ranks:
        assert [handle.rank for handle in ranks] == [0, 1]
        ranks[1].wait_for("ready 1")
        assert ranks[1].running
        assert alive(ranks[1].pid)
        assert ranks[1].output() == "ready 1\n"
        assert ranks[1].kill()
        result = ranks[1].wait(timeout=30)
        assert result.exit_code == -signal.SIGKILL
        assert not ranks[1].running
        assert ranks[0].running
        assert not ranks[1].signal(signal.SIGTERM)


def test_signal_reaches_the_handler_of_the_rank():
    with start_ranks(orderly_ranks, 2, preload=()) as ranks:
        for handle in ranks:
            handle.wait_for("ready")
            handle.signal(signal.SIGTERM)
        assert [result.value for result in ranks.wait()] == ["stopped in order"] * 2


def test_no_process_survives_the_block():
    pids = []

    def fail_among_ranks() -> None:
        with start_ranks(with_children_ranks, 2, preload=()) as ranks:
            for handle in ranks:
                words = handle.wait_for("ready").split()
                pids.extend([handle.pid, *map(int, words[1:4])])
            assert all(map(alive, pids))
            raise RuntimeError("the test's own")

    with pytest.raises(RuntimeError, match="the test's own"):
        fail_among_ranks()
    assert len(set(pids)) == 8
    assert [pid for pid in pids if alive(pid)] == []


def test_what_ranks_leave_behind_ends_with_the_block():
    with start_ranks(with_children_ranks, 2, env={"LEAVE": "yes"}, preload=()) as ranks:
        results = ranks.wait()
        pids = [int(pid) for result in results for pid in result.stdout.split()[1:4]]
        assert all(map(alive, pids))
    assert len(set(pids)) == 6
    assert [pid for pid in pids if alive(pid)] == []


def test_runs_side_by_side_do_not_end_each_other():
    with start_ranks(wait_ranks, 1, preload=()) as longer:
        longer[0].wait_for("ready")
        with start_ranks(with_children_ranks, 1, preload=()) as inner:
            inner[0].wait_for("ready")
        assert longer[0].running
        assert alive(longer[0].pid)


def test_stopped_ranks_are_ended_too():
    with start_ranks(wait_ranks, 1, preload=()) as ranks:
        ranks[0].wait_for("ready")
        ranks[0].signal(signal.SIGSTOP)
    assert not alive(ranks[0].pid)


def test_deadline_is_enforced_while_nobody_waits():
    with start_ranks(wait_ranks, 1, timeout=2.0, preload=()) as ranks:
        pid = ranks[0].pid
        wait_until(lambda: not alive(pid), what="the nursery to act", deadline=Deadline(30))
        with pytest.raises(RanksTimeout, match="in wait_ranks"):
            ranks[0].wait()


def test_own_timeout_of_a_wait_leaves_the_rank_alone():
    with start_ranks(wait_ranks, 1, preload=()) as ranks:
        with pytest.raises(DeadlineError, match=r"rank 0 of .*wait_ranks to end"):
            ranks[0].wait(timeout=0.05)
        ranks[0].wait_for("ready 0")
        with pytest.raises(DeadlineError, match=r"to print 'never'(.|\n)*ready 0"):
            ranks[0].wait_for("never", timeout=0.05)
        assert ranks[0].running


def test_waiting_for_text_of_a_rank_that_ended_fails_at_once():
    with (
        start_ranks(quick_ranks, 1, preload=()) as ranks,
        pytest.raises(RanksFailed, match="never printed 'ready'"),
    ):
        ranks[0].wait_for("ready")


def test_threads_of_the_caller_may_run_ranks_at_the_same_time():
    values = []

    def run() -> None:
        with start_ranks(quick_ranks, 1, preload=()) as ranks:
            values.append(ranks.wait()[0].value)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert values == [5] * 4
