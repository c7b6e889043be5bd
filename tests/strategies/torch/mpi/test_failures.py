"""A rank that dies, raises, hangs or is told to stop: all end, with the cause, and nobody hangs."""

import os
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

PROGRAM = Path(__file__).with_name("training.py")


def started(mpirun, tmp_path, fault, *way, n=2, **environ):
    job = mpirun(PROGRAM, fault, tmp_path, *way, n=n, **environ)
    job.await_file("started")
    return job


def pid(job, rank):
    return int(job.await_file(f"rank-{rank}.pid"))


def gone(job, n=2):
    """No rank is left, a second after mpirun."""
    deadline = time.monotonic() + 10
    left = [pid(job, rank) for rank in range(n)]
    while left and time.monotonic() < deadline:
        left = [one for one in left if Path(f"/proc/{one}").exists()]
        time.sleep(0.02)
    return not left


@pytest.mark.parametrize("way", ["shared", pytest.param("alone", marks=pytest.mark.slow)])
def test_a_killed_rank_ends_the_job(mpirun, tmp_path, way):
    job = started(mpirun, tmp_path, "none", way)
    began = time.monotonic()
    os.kill(pid(job, 1), signal.SIGKILL)
    code = job.wait(60)
    assert code >= 128, job.output  # an operator tries it again
    assert time.monotonic() - began < 15
    assert gone(job)


@pytest.mark.parametrize("way", ["shared", pytest.param("alone", marks=pytest.mark.slow)])
def test_b105_an_exception_in_one_rank_ends_all_and_is_what_is_shown(mpirun, tmp_path, way):
    began = time.monotonic()
    job = mpirun(PROGRAM, "raise", tmp_path, way, n=3)
    assert job.wait(180) == 70, job.output
    assert gone(job, 3)
    ended = time.time()
    assert ended - (tmp_path / "started").stat().st_mtime < 10, "all end in 10 s"
    assert time.monotonic() - began < 60
    assert job.output.index("ValueError: rank 1 has had enough") < len(job.output)
    first = job.output.find("Traceback")
    assert "rank 1 has had enough" in job.output[first : first + 2500]


def test_different_calls_are_named_on_both_sides(mpirun, tmp_path):
    job = mpirun(PROGRAM, "mismatch", tmp_path)
    assert job.wait(180) != 0
    assert "20,000 torch.float32" in job.output or "30,000 torch.float32" in job.output
    assert "the same collective calls" in job.output
    assert gone(job)


@pytest.mark.parametrize("way", ["shared", pytest.param("alone", marks=pytest.mark.slow)])
def test_a_rank_that_hangs_is_named_at_the_deadline(mpirun, tmp_path, way):
    job = started(mpirun, tmp_path, "sleep", way, TRAINKIT_TIMEOUT="8")
    assert job.wait(180) == 138, job.output
    assert "timed out waiting for rank 1" in job.output
    assert gone(job)


def test_a_message_that_is_too_long_is_no_fault_of_the_network(mpirun, tmp_path):
    job = mpirun(PROGRAM, "short", tmp_path)
    assert job.wait(180) == 78, job.output
    assert "recv of 50 torch.float32 from 0" in job.output
    assert "of one size" in job.output
    assert gone(job)


@pytest.mark.slow
def test_a_stopped_rank_is_named_at_the_deadline(mpirun, tmp_path):
    job = started(mpirun, tmp_path, "none", TRAINKIT_TIMEOUT="8")
    os.kill(pid(job, 1), signal.SIGSTOP)
    assert job.wait(180) == 138, job.output
    assert "timed out waiting for rank 1" in job.output
    assert gone(job)


@pytest.mark.slow
def test_the_deadline_holds_where_the_rank_that_serves_the_store_is_stopped(mpirun, tmp_path):
    job = started(mpirun, tmp_path, "none", "alone", TRAINKIT_TIMEOUT="8")
    os.kill(pid(job, 0), signal.SIGSTOP)
    assert job.wait(180) == 138, job.output
    assert "the store of rank 0 does not answer" in job.output
    assert gone(job)


@pytest.mark.parametrize("to", ["one rank", pytest.param("mpirun", marks=pytest.mark.slow)])
def test_a_notice_saves_an_agreed_step_and_the_run_goes_on(mpirun, tmp_path, to):
    """mpirun hands SIGUSR1 on; SIGTERM it answers by killing ranks within a second."""
    job = started(mpirun, tmp_path, "resume", TRAINKIT_PREEMPTION_SIGNALS="SIGTERM,SIGUSR1")
    if to == "mpirun":
        job.process.send_signal(signal.SIGUSR1)
    else:
        os.kill(pid(job, 1), signal.SIGTERM)
    assert job.wait(180) == 143, job.output
    assert gone(job)
    (saved,) = (tmp_path / "saved").glob("step-*/MANIFEST.json")
    step = int(saved.parent.name.removeprefix("step-").partition(".")[0])
    again = mpirun(PROGRAM, "resume", tmp_path)
    assert again.wait(180) == 0, again.output
    assert f'{{"began": {step}}}' in again.output
