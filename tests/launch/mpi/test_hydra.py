"""The relay around mpiexec, with real processes in mpiexec's place."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = str(Path(__file__).parents[3])
RANKS = """
import os, signal, sys, time
ended = []
signal.signal(signal.SIGTERM, lambda *_: ended.append(1))
print("started", flush=True)
sys.stderr.write(sys.argv[1])
sys.stderr.flush()
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until and not ended:
    time.sleep(0.01)
print("told" if ended else "done", flush=True)
sys.exit(int(sys.argv[3]))
"""


def relay(text, seconds, code):
    line = [sys.executable, "-m", "trainkit.launch.mpi.hydra", "t-1", "--"]
    return subprocess.Popen(
        [*line, sys.executable, "-c", RANKS, text, str(seconds), str(code)],
        env={**os.environ, "PYTHONPATH": ROOT, "TRAINKIT_GRACE_PERIOD": "20"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_first_code_that_a_rank_tells_is_the_jobs_and_ends_the_rest():
    text = (
        "half a line trainkit: rank 1 ended with exit code 70 [t-1]\n"
        "trainkit: rank 0 ended with exit code 138 [t-1]\n"
    )
    process = relay(text, 60, 206)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 70
    assert "told" in output
    assert errors.startswith(text)


def test_a_line_of_somebody_else_counts_nothing():
    process = relay("trainkit: rank 1 ended with exit code 70 [t-2]\n", 0, 0)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "done" in output


def test_without_a_word_of_a_rank_mpiexecs_own_code_stays():
    process = relay("", 0, 255)
    process.communicate(timeout=60)
    assert process.returncode == 255


def test_ranks_that_save_after_a_notice_are_not_hurried():
    process = relay("trainkit: rank 1 ended with exit code 143 [t-1]\n", 1, 143)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "done" in output


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_signals_go_on_to_mpiexec(number):
    process = relay("", 60, 5)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert "told" in output
    assert process.returncode == 5
