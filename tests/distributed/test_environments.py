"""One unmodified script trains with the right world size, whatever started it.

Every test starts real processes under the variables that the operator or launcher gives, with
addresses on loopback.
"""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.distributed.pods import PYTHON, TORCHRUN, assert_trained_together
from trainkit.testing import free_port

pytest.importorskip("torch")

SLOW = pytest.mark.slow
TRAIN = [PYTHON, "train.py"]
LEGACY_LAUNCH = [PYTHON, "-m", "torch.distributed.launch", "train.py"]


def pytorchjob(pod, pods, nproc, port):
    """A pod of a PyTorchJob with a Master, as training-operator 1.7 and later makes it."""
    return {
        "PYTHONUNBUFFERED": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
        "RANK": str(pod),
        "WORLD_SIZE": str(pods * nproc),
        "PET_NODE_RANK": str(pod),
        "PET_NNODES": str(pods),
        "PET_NPROC_PER_NODE": str(nproc),
    }


def trainjob(pod, pods, nproc, port):
    return {
        "PET_NNODES": str(pods),
        "PET_NPROC_PER_NODE": str(nproc),
        "PET_NODE_RANK": str(pod),
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
        "JOB_COMPLETION_INDEX": str(pod),
    }


def xgboostjob(pod, pods, port):
    return {
        "PYTHONUNBUFFERED": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(pod),
        "WORLD_SIZE": str(pods),
        "WORKER_PORT": "9999",
        "WORKER_ADDRS": ",".join(f"job-worker-{i}" for i in range(pods - 1)),
    }


def tfjob(role, index, port):
    cluster = {
        "chief": [f"127.0.0.1:{port}"],
        "evaluator": ["127.0.0.1:1"],
        "ps": ["127.0.0.1:2"],
        "worker": ["127.0.0.1:3"],
    }
    task = {"type": role, "index": index}
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task, "environment": "cloud"})}


def test_bare(cluster):
    cluster.start(TRAIN)
    cluster.end()
    assert_trained_together(cluster.records(), 1)


def test_torchrun(cluster):
    cluster.start([*TORCHRUN, "--nproc-per-node=2", "train.py"])
    cluster.end()
    assert_trained_together(cluster.records(), 2)


def test_pytorchjob_of_two_pods(cluster):
    port = free_port()
    for pod in range(2):
        cluster.start(TRAIN, **pytorchjob(pod, 2, 1, port))
    cluster.end()
    assert_trained_together(cluster.records(), 2)


def test_pytorchjob_of_two_pods_with_two_ranks_each(cluster):
    port = free_port()
    for pod in range(2):
        cluster.start(TRAIN, **pytorchjob(pod, 2, 2, port))
    cluster.end()
    assert_trained_together(cluster.records(), 4)


@pytest.mark.parametrize("nproc", [pytest.param(1, marks=SLOW), 2])
def test_pytorchjob_with_the_launcher_of_lecture_yaml(cluster, nproc):
    """B009: without node arguments; they come from the PET_* of the operator."""
    port = free_port()
    for pod in range(2):
        cluster.start(LEGACY_LAUNCH, **pytorchjob(pod, 2, nproc, port))
    cluster.end()
    assert_trained_together(cluster.records(), 2 * nproc)


def test_torchrun_inside_a_pytorchjob(cluster):
    """B003: torchrun's variables override the pod's."""
    port = free_port()
    for pod in range(2):
        cluster.start([*TORCHRUN, "train.py"], **pytorchjob(pod, 2, 2, port))
    cluster.end()
    assert_trained_together(cluster.records(), 4)


def test_trainjob_of_two_pods_with_two_ranks_each(cluster):
    port = free_port()
    for pod in range(2):
        cluster.start(TRAIN, **trainjob(pod, 2, 2, port))
    cluster.end()
    assert_trained_together(cluster.records(), 4)


@pytest.mark.parametrize("round_", [0, *(pytest.param(n, marks=SLOW) for n in range(1, 20))])
def test_trainjob_node_rank_is_the_pods_index_though_it_starts_first(cluster, round_):
    """B011: node 1 starts before node 0, under a rendezvous that numbers as they come."""
    port = free_port()
    for pod in (1, 0):
        cluster.start(TRAIN, PET_RDZV_BACKEND="c10d", **trainjob(pod, 2, 2, port))
    cluster.end()
    assert "ranks 2–3" in cluster.pods[0].output
    assert "ranks 0–1" in cluster.pods[1].output
    assert_trained_together(cluster.records(), 4)


MPIRUN = Path(sys.executable).with_name("mpirun")


@pytest.mark.skipif(
    not MPIRUN.exists() and shutil.which("mpirun") is None, reason="mpirun is not installed"
)
@pytest.mark.parametrize("pod_environ", [{}, pytorchjob(1, 2, 1, 1)], ids=["bare", "in-a-pod"])
def test_mpirun(cluster, pod_environ):
    """B013: also where the pod around mpirun has variables of an operator."""
    mpirun = str(MPIRUN) if MPIRUN.exists() else "mpirun"
    command = [mpirun, "--allow-run-as-root", "--oversubscribe", "-n", "2", *TRAIN]
    cluster.start(command, **pod_environ)
    cluster.end()
    assert_trained_together(cluster.records(), 2)


def test_torchrun_with_left_over_mpi_variables(cluster):
    """B013: the closest launcher wins."""
    leftover = {"PMI_RANK": "0", "PMI_SIZE": "1"}
    cluster.start([*TORCHRUN, "--nproc-per-node=2", "train.py"], **leftover)
    cluster.end()
    assert_trained_together(cluster.records(), 2)


def test_xgboostjob(cluster):
    port = free_port()
    for pod in range(2):
        cluster.start(TRAIN, **xgboostjob(pod, 2, port))
    cluster.end()
    assert_trained_together(cluster.records(), 2)


def test_tfjob_where_ps_and_evaluator_do_not_train(cluster):
    port = free_port()
    for role in ("chief", "worker", "ps", "evaluator"):
        cluster.start(TRAIN, **tfjob(role, 0, port))
    cluster.end()
    assert_trained_together(cluster.records(), 2)
    assert "ps has nothing to do" in cluster.pods[2].output
    assert "evaluator has nothing to do" in cluster.pods[3].output


def test_indexed_job(cluster):
    port = free_port()
    for index in range(2):
        cluster.start(
            TRAIN,
            JOB_COMPLETION_INDEX=str(index),
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
    cluster.end()
    assert_trained_together(cluster.records(), 2)


def test_mpi_launcher_pod_does_not_train_alone(cluster):
    (cluster.folder / "hostfile").write_text("job-worker-0 slots=1\njob-worker-1 slots=1\n")
    cluster.start(TRAIN, OMPI_MCA_orte_default_hostfile=str(cluster.folder / "hostfile"))
    cluster.end(codes=[78])
    assert "trainkit launch train.py" in cluster.output()
    assert cluster.records() == []


def test_auto_on_a_cpu_pod_is_one_process(cluster):
    """B005: not one a core of the host; the log says which limit there is."""
    environ = {**trainjob(0, 1, 1, free_port()), "PET_NPROC_PER_NODE": "auto"}
    cluster.start(["taskset", "-c", "0", *TRAIN], **environ)
    cluster.end()
    assert_trained_together(cluster.records(), 1)
    assert "1 process, and not one per CPU (1 by CPU affinity)" in cluster.output()


def test_a_world_size_that_cannot_be_is_an_error(cluster):
    """B001: pods or processes, but nothing else."""
    environ = {**pytorchjob(1, 2, 4, 1), "WORLD_SIZE": "5"}
    cluster.start(TRAIN, **environ)
    cluster.end(codes=[78])
    assert "WORLD_SIZE" in cluster.output()
    assert "5" in cluster.output()
    assert "Traceback" not in cluster.output()


def test_ranks_that_disagree_about_the_world_are_told(cluster):
    port = free_port()
    for pod, world in ((0, 2), (1, 3)):
        environ = {"RANK": str(pod), "WORLD_SIZE": str(world)}
        cluster.start(TRAIN, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), **environ)
    cluster.end(codes=[78, 78])
    assert "disagree about the world size" in cluster.output()


def test_a_checkpoint_of_a_bare_run_resumes_under_torchrun_and_back(cluster):
    """The whole of 10 epochs is trained in three parts, by 1, 2 and 1 ranks."""
    source = (cluster.folder / "train.py").read_text()
    url = str(cluster.folder / "checkpoints")
    for epochs, command, world_size in (
        (3, TRAIN, 1),
        (6, [*TORCHRUN, "--nproc-per-node=2", "train.py"], 2),
        (10, TRAIN, 1),
    ):
        # The number of epochs is the user's to change between attempts; nothing else is.
        (cluster.folder / "train.py").write_text(source.replace("epoch, 10)", f"epoch, {epochs})"))
        cluster.pods.clear()
        cluster.start(command, TRAINKIT_CHECKPOINT_DIR=url)
        cluster.end()
        done = {3: 0, 6: 3, 10: 6}[epochs]
        assert_trained_together(cluster.records(), world_size, epochs=epochs - done)


def test_a_worker_waits_for_a_late_master_and_says_so(cluster):
    """B007: the worker is there long before anything listens, and names what it awaits."""
    port = free_port()
    worker = cluster.start(TRAIN, **pytorchjob(1, 2, 1, port))
    line = ""
    while "waiting for rank 1 to reach the master at 127.0.0.1" not in line:
        line = worker.process.stdout.readline()
        assert line, "the worker ended instead of waiting"
    cluster.start(TRAIN, **pytorchjob(0, 2, 1, port))
    cluster.end()
    assert_trained_together(cluster.records(), 2)


def test_a_master_that_never_comes_is_a_retryable_end(cluster):
    environ = pytorchjob(1, 2, 1, free_port())
    cluster.start(TRAIN, **{**environ, "TRAINKIT_TIMEOUT": "3"})
    cluster.end(codes=[138])
    assert f"127.0.0.1:{environ['MASTER_PORT']}" in cluster.output()
    assert "Traceback" not in cluster.output()


def test_a_rank_that_never_comes_is_named(cluster):
    environ = {**pytorchjob(0, 3, 1, free_port()), "TRAINKIT_TIMEOUT": "3"}
    cluster.start(TRAIN, **environ)
    cluster.end(codes=[138])
    assert "missing: rank 1, 2" in cluster.output()


@pytest.mark.parametrize("round_", [0, *(pytest.param(n, marks=SLOW) for n in range(1, 10))])
def test_two_jobs_on_one_host_do_not_meet(cluster, round_):
    """B016: no port is given, so each takes a free one."""
    command = [PYTHON, "two_ranks.py"]
    source = (cluster.folder / "train.py").read_text()
    script = source.replace("trainkit.run(main)", "trainkit.run(main, num_procs=2)")
    (cluster.folder / "two_ranks.py").write_text(script)
    for _ in range(2):
        cluster.start(command)
    cluster.end()
    records = cluster.records()
    assert [r["rank"] for r in records] == [0, 0, 1, 1]
    assert {r["world_size"] for r in records} == {2}


def test_a_port_that_is_taken_is_named_with_its_holder(cluster):
    """B016: a fixed port that another job holds."""
    port = free_port()
    holder = cluster.start(
        [
            PYTHON,
            "-c",
            f"import socket, sys; s = socket.socket(); s.bind(('', {port})); s.listen(); "
            "print('here', flush=True); sys.stdin.read(); import time; time.sleep(600)",
        ]
    )
    assert holder.process.stdout.readline() == "here\n"
    job = cluster.start(TRAIN, **pytorchjob(0, 2, 1, port))
    cluster.pods.remove(holder)
    try:
        cluster.end(codes=[78])
        assert f"port {port}" in job.output
        assert f"process {holder.process.pid}" in job.output
    finally:
        holder.stop()
