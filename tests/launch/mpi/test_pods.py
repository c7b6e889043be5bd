"""An MPI job over real sshd: a launcher and two workers, each with a network of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.launch.mpi import pods
from tests.launch.mpi.training import SECRET
from trainkit.checkpoint import CheckpointManager, CheckpointOptions

HERE = Path(__file__).parent
TRAINING = str(HERE / "training.py")
WORKER = (sys.executable, "-m", "trainkit", "launch", TRAINING)
ODD = {
    "NCCL_IB_HCA": "=mlx5_0:1,mlx5_1:1",
    "TRAINKIT_ODD": "a;b|c d\"'$x \\ k=v",
    "TWO_LINES": "one\ntwo",
}


def mpirun() -> str | None:
    return shutil.which("mpirun", path=f"{os.environ['PATH']}:{Path(sys.executable).parent}")


@pytest.fixture(scope="module", autouse=True)
def _pods_can_be_made():
    reason = "needs mpirun" if mpirun() is None else pods.missing()
    if reason:
        pytest.skip(reason)


class Job:
    """One run of the job: exit code, output, seconds, and what each rank saw."""

    def __init__(self, folder: Path, environ: dict[str, str], workers, launcher: list[str]):
        self.name = f"pi-{uuid.uuid4().hex[:8]}"
        self.ranks = folder / "ranks"
        self.ranks.mkdir()
        line = pods.command(
            self.name, folder, [sys.executable, str(HERE / "launcher.py"), *launcher], workers
        )
        environ = {**_environ(), "OMPI_MCA_orte_default_hostfile": pods.HOSTFILE, **environ}
        begin = time.monotonic()
        done = subprocess.run(line, env=environ, capture_output=True, text=True, timeout=120)
        self.seconds = time.monotonic() - begin
        self.code = done.returncode
        logs = [log.read_text() for log in sorted(folder.glob("worker-*.log"))]
        self.output = "\n".join([done.stdout, done.stderr, *logs])

    def seen(self) -> list[dict]:
        files = sorted(self.ranks.iterdir())
        return [json.loads(file.read_text()) for file in files]


def _environ() -> dict[str, str]:
    """The launcher's pod: what mpi-operator sets, and leftovers of a world around it."""
    root = str(Path(__file__).parents[3])
    path = os.environ["PATH"]
    return {
        "PATH": f"{Path(str(mpirun())).parent}:{path}",
        "PYTHONPATH": root,
        "HOME": pods.HOME,
        "K_MPI_JOB_ROLE": "launcher",
        "OMPI_MCA_orte_keep_fqdn_hostnames": "true",
        "OMPI_MCA_orte_set_default_slots": "2",
        "OMPI_MCA_plm_rsh_args": "-o ConnectionAttempts=10",
        "NVIDIA_VISIBLE_DEVICES": "",
        "NVIDIA_DRIVER_CAPABILITIES": "",
    }


def _training(mode: str, folder: Path) -> list[str]:
    return [TRAINING, mode, str(folder / "ranks"), "OF-A-RANK"]


@pytest.fixture
def run_job(tmp_path):
    def run(mode: str, *options: str, environ=None, workers=(WORKER, WORKER)) -> Job:
        line = [*options, *_training(mode, tmp_path)]
        return Job(tmp_path, environ or {}, workers, line)

    return run


def test_ranks_stand_on_the_workers_with_the_launchers_variables(run_job):
    job = run_job("report", environ={**ODD, "HF_TOKEN": SECRET, "RANK": "0", "WORLD_SIZE": "9"})
    assert job.code == 0, job.output
    assert "left behind []" in job.output
    ranks = job.seen()
    assert [(rank["rank"], rank["world_size"]) for rank in ranks] == [(n, 4) for n in range(4)]
    assert [rank["hostname"] for rank in ranks] == [f"{job.name}-worker-{n}" for n in (0, 0, 1, 1)]
    assert [rank["local_rank"] for rank in ranks] == [0, 1, 0, 1]
    for rank in ranks:
        environ = rank["environ"]
        assert {name: environ.get(name) for name in ODD} == ODD
        assert environ["HF_TOKEN"] == SECRET
        assert rank["shown"] == []
        assert environ["TRAINKIT_PREEMPTION_SIGNALS"] == "SIGTERM,SIGUSR1"
        assert not {"RANK", "WORLD_SIZE", "K_MPI_JOB_ROLE", "NVIDIA_VISIBLE_DEVICES"} & set(environ)
        assert rank["cpus"] == len(os.sched_getaffinity(0))


def test_fewer_ranks_than_slots_fill_the_first_hosts(run_job):
    job = run_job("report", "--num-ranks", "3")
    assert job.code == 0, job.output
    assert [rank["hostname"][-1] for rank in job.seen()] == ["0", "0", "1"]


def test_a_launcher_whose_name_resolves_nowhere_can_be_a_worker_too(run_job):
    job = run_job("report", "--works", environ={"RANK": "0", "WORLD_SIZE": "9"})
    assert job.code == 0, job.output
    ranks = job.seen()
    assert [rank["hostname"].split("-", 2)[2] for rank in ranks] == [
        "launcher",
        *("worker-0", "worker-0", "worker-1", "worker-1"),
    ]
    assert not {"RANK", "WORLD_SIZE", "K_MPI_JOB_ROLE"} & set(ranks[0]["environ"])


def test_ranks_that_land_in_the_launcher_end_the_job_before_training(run_job):
    job = run_job("report", "--trap")
    assert job.code == 78, job.output
    assert f"on {job.name}-launcher: this host is none of those" in job.output
    assert f"{job.name}-worker-0.{job.name}.default.svc" in job.output
    assert job.seen() == []


@pytest.mark.parametrize(("mode", "code"), [("raise", 70), ("lost", 138), ("killed", 137)])
def test_a_rank_that_fails_ends_all_with_its_code(run_job, mode, code):
    job = run_job(mode)
    assert job.code == code, job.output
    assert "gave up waiting" not in job.output  # for ranks to end, 10 s after


def test_the_rank_that_raised_first_is_the_cause_in_the_report(run_job, tmp_path):
    message = tmp_path / "termination"
    message.touch()
    pytest.importorskip("torch")
    environ = {"TRAINKIT_TERMINATION_LOG": str(message)}
    job = run_job("ddp", environ=environ)
    assert job.code == 70, job.output
    report = job.output.partition("mpirun on ")[2]
    assert report.startswith(f"{job.name}-launcher failed first: ValueError: rank 1 has had enough")
    assert ", in ddp\n" in report
    assert "rank 1 has had enough" in message.read_text()


def test_a_notice_to_the_launcher_reaches_all_ranks(run_job, tmp_path):
    job = run_job("stop", "--stop-when", str(tmp_path / "ranks"))
    assert job.code == 143, job.output
    assert len(job.seen()) == 4


@pytest.mark.parametrize("flags", [(), ("--drain", "asked")], ids=["launcher", "worker"])
def test_a_notice_to_a_pod_has_the_whole_job_save(run_job, tmp_path, flags):
    pytest.importorskip("torch")
    started, url = tmp_path / "started", tmp_path / "checkpoints"
    started.mkdir()
    environ = {"STARTED": str(started), "TRAINKIT_CHECKPOINT_DIR": str(url)}
    job = run_job("saves", *flags, "--stop-when", str(started), environ=environ)
    assert job.code == 143, job.output
    found = re.findall(r"rank (\d): stopped after step (\d+) as asked; it is saved", job.output)
    assert {rank for rank, _ in found} == {"0", "1", "2", "3"}, job.output
    (step,) = {int(step) for _, step in found}
    checkpoints = CheckpointManager(url, {}, options=CheckpointOptions(read_only=True))
    assert checkpoints.latest_step() == step
    checkpoints.close()


def test_a_worker_that_is_lost_is_no_success(run_job, tmp_path):
    pytest.importorskip("torch")
    started, url = tmp_path / "started", tmp_path / "checkpoints"
    started.mkdir()
    environ = {"STARTED": str(started), "TRAINKIT_CHECKPOINT_DIR": str(url)}
    job = run_job("saves", "--drain", "lost", "--stop-when", str(started), environ=environ)
    assert job.code == 138, job.output
    assert re.search(rf"failed first: mpirun has lost {job.name}-worker-\d", job.output), job.output


def test_a_host_without_sshd_is_named(run_job):
    environ = {"TRAINKIT_TIMEOUT": "4"}
    job = run_job("report", environ=environ, workers=(WORKER, ("sleep", "365d")))
    assert job.code == 138, job.output
    assert f"1 missing: {job.name}-worker-1.{job.name}.default.svc: port 22: conn" in job.output
    assert f"{job.name}-worker-0.{job.name}" not in job.output.partition("gave up")[2]


def test_a_host_that_refuses_the_key_is_no_matter_of_waiting(run_job):
    stranger = (
        "bash",
        "-c",
        "mkdir -p /run/sshd && ssh-keygen -q -t ed25519 -N '' -f /tmp/key && "
        'exec "$(PATH=$PATH:/usr/sbin command -v sshd)" -D -e -h /tmp/key '
        "-o AuthorizedKeysFile=none -o PasswordAuthentication=no",
    )
    job = run_job("report", workers=(WORKER, stranger))
    assert job.code == 78, job.output
    assert f"{job.name}-worker-1.{job.name}.default.svc answers, and lets nobody in" in job.output
    assert "sshAuthMountPath" in job.output


def test_sshd_on_another_port_is_found(run_job):
    worker = ("env", "TRAINKIT_SSH_PORT=2222", *WORKER)
    job = run_job("report", environ={"TRAINKIT_SSH_PORT": "2222"}, workers=(worker, worker))
    assert job.code == 0, job.output
    assert len(job.seen()) == 4


def test_the_agent_of_a_v1_job_is_used(run_job):
    environ = {
        "OMPI_MCA_plm_rsh_agent": pods.KUBEXEC,
        "OMPI_MCA_plm_rsh_args": "",
        "OMPI_MCA_orte_default_hostfile": pods.V1_HOSTFILE,
        **ODD,
    }
    job = run_job("report", environ=environ, workers=[("sleep", "365d")] * 2)
    assert job.code == 0, job.output
    assert [rank["hostname"] for rank in job.seen()] == [
        f"{job.name}-worker-{n}" for n in (0, 0, 1, 1)
    ]
    assert all(rank["environ"]["NCCL_IB_HCA"] == ODD["NCCL_IB_HCA"] for rank in job.seen())
