"""The MNIST recipe under mpirun with ``--strategy mpi``: as good as ddp, and equal to it."""

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.pods import PYTHON
from tests.distributed.test_mnist import trace, wait_for_step

pytest.importorskip("torch")
pytest.importorskip("mpi4py")

BESIDE = Path(sys.executable).with_name("mpirun")
FOUND = str(BESIDE) if BESIDE.exists() else shutil.which("mpirun")
RECIPE = [PYTHON, "-m", "trainkit.recipes.mnist"]

pytestmark = pytest.mark.skipif(FOUND is None, reason="mpirun is not installed")


def mpirun(n, *flags):
    return [FOUND, "--allow-run-as-root", "--oversubscribe", "-n", str(n), *RECIPE, *flags]


def test_learns_the_embedded_digits_as_ddp_does(cluster):
    """Two ranks add two numbers, in whatever order: the losses are those of ddp to the bit."""
    accuracy = {}
    for strategy in ("mpi", "ddp"):
        cluster.pods.clear()
        pod = cluster.start(mpirun(2, "--strategy", strategy, "--trace", strategy))
        cluster.end()
        accuracy[strategy] = done_line(pod)["test_accuracy"]
    assert accuracy["mpi"] >= 0.97
    assert accuracy["mpi"] == accuracy["ddp"]
    for rank in range(2):
        ours, theirs = (trace(cluster.folder / name, rank) for name in ("mpi", "ddp"))
        assert len(ours) > 300
        assert ours == theirs


@pytest.mark.slow
def test_one_and_three_ranks_have_equal_losses_at_the_same_global_batch(cluster):
    common = ["--max-steps", "30", "--seed", "3"]
    cluster.start([*RECIPE, *common, "--batch-size", "96", "--trace", "one"])
    cluster.end()
    cluster.start(mpirun(3, *common, "--strategy", "mpi", "--batch-size", "32", "--trace", "three"))
    cluster.end()
    one = trace(cluster.folder / "one")
    three = [trace(cluster.folder / "three", rank) for rank in range(3)]
    for step, (_, samples, loss) in one.items():
        assert sorted(samples) == sorted(i for part in three for i in part[step][1])
        mean = sum(part[step][2] for part in three) / 3
        assert mean == pytest.approx(loss, rel=2e-4)


def test_a_killed_rank_changes_nothing_in_what_was_trained(cluster):
    """kill -9 of rank 1, all again by mpirun: samples and losses of an unbroken run."""
    flags = ["--max-steps", "120", "--checkpoint-every", "7", "--strategy", "mpi"]
    cluster.start(mpirun(2, *flags, "--trace", "unbroken"))
    cluster.end()
    cluster.pods.clear()
    broken = mpirun(2, *flags, "--trace", "broken", "--checkpoint-dir", "checkpoints")
    pod = cluster.start(broken)
    wait_for_step(cluster.folder / "broken" / "rank-1.jsonl", 40, pod)
    os.kill(rank_of(pod, 1), signal.SIGKILL)
    assert pod.end(time.monotonic() + 60) >= 128, pod.output
    cluster.pods.clear()
    pod = cluster.start(broken)
    cluster.end()
    assert 0 < done_line(pod)["steps_run"] < 120
    for rank in range(2):
        expected = trace(cluster.folder / "unbroken", rank)
        assert trace(cluster.folder / "broken", rank) == expected
        assert sorted(expected) == list(range(1, 121))


def done_line(pod):
    """The last line of rank 0; mpirun puts a byte of its own before a rank's first one."""
    return json.loads(re.findall(r'\{"event".*\}', pod.output)[-1])


def rank_of(pod, rank):
    """Process id of a rank below mpirun."""
    from trainkit.processes.table import descendants

    for pid in descendants(pod.process.pid):
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if f"OMPI_COMM_WORLD_RANK={rank}".encode() in variables and b"mnist" in command:
            return pid
    raise AssertionError(f"no rank {rank} below mpirun")
