"""Notices to stop, and peers that vanish: real processes, real signals."""

import os
import shutil
import signal
import subprocess
import time

import pytest

from tests.distributed.pods import PYTHON, TORCHRUN, assert_trained_together
from tests.distributed.test_environments import pytorchjob, trainjob
from trainkit.testing import free_port, requires_root

pytest.importorskip("torch")

LOOP = """
import os, sys, time, torch, trainkit

def main(ctx):
    model = ctx.setup(torch.nn.Linear(2, 1))
    progress = trainkit.Progress()
    first = ctx.checkpoints("first", model=model, progress=progress)
    second = ctx.checkpoints("second", progress=progress)
    first.restore_latest()
    while progress.step < 100_000:
        model(torch.ones(1, 2)).sum().backward()
        progress.step += 1
        if progress.step == 5 and ctx.rank == 0:
            print("step 5", flush=True)
        {break_}
        first.step(progress.step)
        second.step(progress.step)
        time.sleep(0.005)

if __name__ == "__main__":
    trainkit.run(main)
"""


def write(cluster, break_="pass"):
    (cluster.folder / "loop.py").write_text(LOOP.replace("{break_}", break_))


def read_until(pod, text):
    while True:
        line = pod.process.stdout.readline()
        assert line, f"the pod ended before it said {text!r}"
        if text in line:
            return


def saved(folder):
    return sorted(
        path.name[:15] for path in folder.glob("step-*/MANIFEST.json") for path in [path.parent]
    )


@pytest.mark.parametrize("notice", [signal.SIGTERM, signal.SIGUSR1])
def test_a_launcher_passes_the_notice_on_and_ends_as_its_ranks(cluster, notice):
    """Plain python in a pod of two ranks: both save, with all managers, and the code is 143."""
    write(cluster)
    environ = trainjob(0, 1, 2, free_port())
    if notice is signal.SIGUSR1:
        environ["TRAINKIT_PREEMPTION_SIGNALS"] = "SIGUSR1"
    pod = cluster.start([PYTHON, "loop.py"], **environ)
    read_until(pod, "step 5")
    os.kill(pod.process.pid, notice)
    cluster.end(codes=[143])
    (first,) = saved(cluster.folder / "first")
    assert saved(cluster.folder / "second") == [first]
    assert "it is saved" in pod.output


def test_two_pods_save_the_same_step_though_one_alone_was_told(cluster):
    write(cluster)
    port = free_port()
    pods = [cluster.start([PYTHON, "loop.py"], **pytorchjob(n, 2, 1, port)) for n in range(2)]
    read_until(pods[0], "step 5")
    os.kill(pods[1].process.pid, signal.SIGTERM)
    cluster.end(codes=[143, 143])
    assert len(saved(cluster.folder / "first")) == 1


def test_leaving_the_loop_for_a_notice_is_not_success(cluster):
    write(cluster, "\n        if ctx.preempted: break".strip())
    pod = cluster.start([PYTHON, "loop.py"])
    read_until(pod, "step 5")
    os.kill(pod.process.pid, signal.SIGTERM)
    cluster.end(codes=[143])
    assert len(saved(cluster.folder / "first")) == 1


def test_a_notice_while_others_are_awaited_ends_at_once(cluster):
    pod = cluster.start([PYTHON, "train.py"], **pytorchjob(1, 2, 1, free_port()))
    read_until(pod, "waiting for rank 1 to reach the master")
    os.kill(pod.process.pid, signal.SIGTERM)
    cluster.end(seconds=60, codes=[143])


def test_a_notice_to_a_launcher_that_awaits_others_ends_at_once(cluster):
    pod = cluster.start([PYTHON, "train.py"], **trainjob(1, 2, 2, free_port()))
    read_until(pod, "waiting for node 1 to reach the master")
    os.kill(pod.process.pid, signal.SIGTERM)
    cluster.end(seconds=60, codes=[143])


@requires_root()
@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs util-linux's unshare")
def test_a_notice_to_pid_1_that_awaits_others(cluster):
    """As PID 1 the kernel delivers no signal that the process has no handler for."""
    command = ["unshare", "--pid", "--fork", "--kill-child", PYTHON, "train.py"]
    pod = cluster.start(command, **pytorchjob(1, 2, 1, free_port()))
    read_until(pod, "waiting for rank 1 to reach the master")
    children = f"/proc/{pod.process.pid}/task/{pod.process.pid}/children"
    with open(children) as file:
        os.kill(int(file.read().split()[0]), signal.SIGTERM)
    cluster.end(seconds=60, codes=[143])


def test_a_rank_ends_though_the_host_of_the_store_has_frozen(cluster):
    """Rank 0 is stopped (SIGSTOP); rank 1 fails, and must not wait for the store for ever."""
    (cluster.folder / "fails.py").write_text(
        "import sys, time, torch, trainkit\n"
        "def main(ctx):\n"
        "    print('here', flush=True)\n"
        "    if ctx.rank == 0: time.sleep(600)\n"
        "    sys.stdin.readline()\n"
        "    time.sleep(1)\n"
        "    raise ValueError('bad batch')\n"
        "trainkit.run(main)\n"
    )
    port = free_port()
    pods = [cluster.start([PYTHON, "fails.py"], **pytorchjob(n, 2, 1, port)) for n in range(2)]
    for pod in pods:
        read_until(pod, "here")
    os.kill(pods[0].process.pid, signal.SIGSTOP)
    assert pods[1].end(time.monotonic() + 60) == 70
    assert "bad batch" in pods[1].output


def test_launchers_that_do_not_meet_are_a_retryable_end(cluster):
    """An elastic PyTorchJob of two pods, of which one never comes."""
    environ = {
        "PET_NNODES": "2:3",
        "PET_NPROC_PER_NODE": "2",
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": f"localhost:{free_port()}",
        "PYTHONUNBUFFERED": "1",
    }
    pod = cluster.start([PYTHON, "train.py"], **environ, **{"TRAINKIT_TIMEOUT": "4"})
    cluster.end(codes=[138])
    assert "the launchers of 2 to 3 pods did not meet at localhost" in pod.output
    assert "Traceback" not in pod.output


def test_a_script_on_standard_input_is_refused_where_ranks_are_to_be_started(cluster):
    script = (cluster.folder / "train.py").read_text()
    environ = {"PATH": os.environ["PATH"], **trainjob(0, 1, 2, free_port())}
    done = subprocess.run(
        [PYTHON, "-"],
        input=script,
        cwd=cluster.folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 78
    assert "names no script" in done.stderr


@pytest.mark.parametrize(
    "round_", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 20))]
)
def test_ranks_restarted_in_place_meet_in_the_same_store(cluster, round_):
    """torchrun's store outlives the dead ranks; without fresh keys every second restart fails."""
    script = (cluster.folder / "train.py").read_text()
    dying = script.replace(
        "            progress.step += 1\n",
        "            progress.step += 1\n"
        "            import os\n"
        "            if ctx.rank == 1 and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "                os._exit(3)\n",
    )
    assert dying != script
    (cluster.folder / "train.py").write_text(dying)
    cluster.start([*TORCHRUN, "--nproc-per-node=2", "--max-restarts=1", "train.py"])
    cluster.end()
    # a rank of the first attempt that ended by losing its peer has written a record too
    whole = [record for record in cluster.records() if len(record["seen"]) == 10 * 256 // 2]
    assert_trained_together(whole, 2)
