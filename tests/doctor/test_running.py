"""A check may hang, crash, raise or print: it becomes a finding, and nothing is left of it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.doctor import misbehaving
from trainkit.doctor import Question, Status
from trainkit.doctor.checks import CHECKS, Entry, seconds_of
from trainkit.doctor.running import diagnose
from trainkit.waiting import Deadline, wait_until

GENEROUS = 60.0


def entry(function, seconds=GENEROUS, **more):
    return Entry(function, f"{misbehaving.__name__}:{function}", seconds, **more)


def run(*functions, seconds=GENEROUS, question=None, **more):
    checks = [entry(function, seconds, **more) for function in functions]
    return diagnose(question or Question(), checks=checks)


def gone(pid):
    """Whether a process has ended, and been reaped by whoever took it over or not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return text.rpartition(")")[2].split()[0] in "ZX"


def test_what_a_check_yields_comes_through():
    (found,) = run("works", question=Question(checkpoint_dir="s3://x"))
    assert (found.check, found.status, found.found) == ("works", Status.OK, "asked for s3://x")
    assert found.values == {"n": 1}


def test_what_a_check_prints_is_no_answer(capfd):
    assert [one.found for one in run("prints")] == ["printed"]
    assert capfd.readouterr() == ("", "")


def test_one_that_hangs_is_stopped_and_named():
    begin = time.monotonic()
    first, stopped = run("hangs", seconds=3.0, hang=Status.BROKEN, advice="look there")
    assert time.monotonic() - begin < 60
    assert first.found == "said before"
    assert stopped.found == "the check hangs did not end within 3 s and was stopped"
    assert (stopped.status, stopped.advice) == (Status.BROKEN, "look there")


def test_one_that_ignores_signals_is_stopped_too():
    (stopped,) = run("ignores_signals", seconds=2.0)
    assert stopped.status is Status.NOT_CHECKED
    assert "ignores_signals" in stopped.found
    assert stopped.advice


@pytest.mark.parametrize("function", ["hangs_with_children", "leaves_a_process"])
def test_its_processes_end_with_it(function):
    found = run(function, seconds=5.0)
    pid = next(one.values["pid"] for one in found if one.check == "pid")
    wait_until(lambda: gone(pid), what="the child's end", deadline=Deadline(30))


def test_one_that_crashes():
    first, died = run("crashes", hang=Status.BROKEN)
    assert first.found == "said before"
    assert died.found == "the check crashes died (SIGSEGV)"
    assert died.status is Status.BROKEN


def test_one_that_exits_shows_its_last_words():
    (died,) = run("exits")
    assert died.found == "the check exits died (exit code 3): last words"


def test_an_exception_is_a_finding():
    first, failed = run("raises")
    assert first.found == "said before"
    assert failed.status is Status.NOT_CHECKED
    assert "KeyError: 'what'" in failed.found
    (refused,) = run("refuses")
    assert (refused.status, refused.found) == (Status.BROKEN, "not for you")


def test_no_secret_comes_through(monkeypatch):
    monkeypatch.setenv("MY_API_TOKEN", "planted-token-value")
    (failed,) = run("leaks")
    assert "planted" not in failed.found
    assert "cannot reach s3://bucket with …" in failed.found


def test_one_that_says_nothing_and_one_that_leaves_a_thread():
    (nothing,) = run("says_nothing")
    assert nothing.status is Status.NOT_CHECKED
    assert [one.found for one in run("leaves_a_thread", seconds=30.0)] == ["left a thread"]


def test_those_that_wait_run_together_and_those_that_measure_do_not(tmp_path):
    question = Question(checkpoint_dir=f"{tmp_path}/a|{tmp_path}/b")
    found = run("meets", "meets_back", question=question)
    assert [one.found for one in found] == ["met", "met"]
    question = Question(checkpoint_dir=f"{tmp_path}/c|{tmp_path}/d")
    first, second = run("meets", "meets_back", seconds=4.0, question=question, measures=True)
    assert "did not end" in first.found
    assert second.found == "met"  # the first one's file is there


def test_findings_come_in_the_order_of_the_table():
    found = run("says_nothing", "works", "prints")
    assert [one.check for one in found] == ["says_nothing", "works", "prints"]


def test_progress_is_told_of_what_runs():
    told = []
    diagnose(Question(), checks=[entry("hangs", 2.0)], progress=told.append)
    names = {name for running in told for name, _, _ in running}
    assert names == {"hangs"}
    assert {most for running in told for _, _, most in running} == {2.0}


def test_a_deadline_that_is_asked_for_holds_for_all(monkeypatch):
    monkeypatch.setenv("TRAINKIT_TIMEOUT", "7")
    across = next(one for one in CHECKS if one.seconds is None)
    assert seconds_of(across, Question()) == 67
    assert {seconds_of(one, Question(timeout=5.0)) for one in CHECKS} == {5.0}


def test_a_doctor_that_is_killed_leaves_no_check(tmp_path):
    note = tmp_path / "pid"
    code = (
        "import sys; from tests.doctor.test_running import *\n"
        f"def tell(running): open({str(note)!r}, 'a').close()\n"
        "diagnose(Question(), checks=[entry('hangs')], progress=tell)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def child():
            return note.exists() and children.read_text().split()

        (pid,) = wait_until(child, what="the check's process", deadline=Deadline(60))
        # It asks the kernel to end with its parent before it reads what is asked of it.
        wait_until(
            lambda: b"trainkit.doctor.child" in Path(f"/proc/{pid}/cmdline").read_bytes(),
            what="the check",
            deadline=Deadline(60),
        )
        wait_until(
            lambda: Path(f"/proc/{pid}/wchan").exists() and _sleeps(pid),
            what="the check to sleep",
            deadline=Deadline(60),
        )
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    wait_until(lambda: gone(pid), what="the check's end", deadline=Deadline(60))


def _sleeps(pid):
    """Whether it has imported the check, which takes file reads, and is in its long sleep."""
    return "misbehaving" in Path(f"/proc/{pid}/maps").read_text() or _in_nanosleep(pid)


def _in_nanosleep(pid):
    try:
        # 230: clock_nanosleep on x86-64, 115 on arm64.
        return Path(f"/proc/{pid}/syscall").read_text().split()[0] in ("230", "115")
    except OSError:
        return False


def test_a_process_that_cannot_be_started(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    (found,) = run("works")
    assert found.status is Status.BROKEN
    assert "no process can be started for the check works" in found.found


def test_every_check_of_the_table_is_there():
    from importlib import import_module

    assert len({one.name for one in CHECKS}) == len(CHECKS)
    for one in CHECKS:
        module, _, function = one.where.partition(":")
        assert callable(getattr(import_module(module), function)), one.where
