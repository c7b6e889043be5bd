"""XGBoost over real processes, under the variables of both operators and of launchers."""

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
from tests.distributed.test_environments import xgboostjob
from tests.distributed.xgboost_programs import (
    EQUAL,
    FAILS,
    INTERFACE,
    LATE_NAME,
    LATE_RANK,
    MAIN,
    NO_TORCH,
    RESUMES,
    THREADS,
    TOGETHER,
    TRAIN,
    TWO_TRAININGS,
)
from trainkit.testing import free_port

pytest.importorskip("xgboost", reason="needs xgboost-cpu: trainkit[xgboost-cpu]")


SLOW = pytest.mark.slow
LAUNCH = [PYTHON, "-m", "trainkit", "launch"]
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def trainjob(pod, workers, port, gpus=None):
    """A pod of a TrainJob with the policy xgboost; ``gpus`` as if it saw so many."""
    asked = {} if gpus is None else {"PET_NPROC_PER_NODE": str(gpus)}
    return {
        "DMLC_TRACKER_URI": "127.0.0.1",
        "DMLC_TRACKER_PORT": str(port),
        "DMLC_TASK_ID": str(pod),
        "DMLC_NUM_WORKER": str(workers),
        "JOB_COMPLETION_INDEX": str(pod),
        **asked,
    }


def write(cluster, body, name="train.py"):
    (cluster.folder / name).write_text(TRAIN + body + MAIN)
    return [PYTHON, name]


def told(cluster):
    """What ranks told, by rank: their words after rank and world size."""
    lines = re.findall(r"^(?:\[[^\]]*\] )?told (\d+) (\d+) ?(.*)$", cluster.output(), re.M)
    sizes = {size for _, size, _ in lines}
    assert len(sizes) == 1, cluster.output()
    found = {int(rank): words for rank, _, words in lines}
    assert sorted(found) == list(range(int(sizes.pop()))), cluster.output()
    return [found[rank] for rank in sorted(found)]


def read_until(pod, text):
    while True:
        line = pod.process.stdout.readline()
        assert line, f"the pod ended before it said {text!r}"
        if text in line:
            return


def start_two_pods(cluster, command, **environ):
    port = free_port()
    return [cluster.start(command, **xgboostjob(n, 2, port), **environ) for n in range(2)]


@pytest.mark.parametrize(
    ("command", "environs", "size", "torch"),
    [
        pytest.param(
            [], lambda port: [xgboostjob(n, 3, port) for n in (1, 0, 2)], 3, False, id="v1-no-torch"
        ),
        pytest.param(
            [], lambda port: [trainjob(n, 2, port) for n in (1, 0)], 2, True, id="trainjob"
        ),
        pytest.param(
            [],
            lambda port: [trainjob(n, 4, port, 2) for n in (0, 1)],
            4,
            False,
            id="trainjob-2-gpus-a-pod-no-torch",
        ),
        pytest.param(
            LAUNCH,
            lambda port: [trainjob(n, 4, port, 2) for n in (0, 1)],
            4,
            True,
            id="launch-trainjob-2-gpus-a-pod",
            marks=SLOW,
        ),
        pytest.param(
            LAUNCH,
            lambda port: [xgboostjob(n, 2, port) for n in (0, 1)],
            2,
            False,
            id="launch-v1-no-torch",
        ),
        pytest.param(
            [*LAUNCH, "--nproc-per-node", "2"],
            lambda port: [{}],
            2,
            True,
            id="launch-on-one-host",
            marks=SLOW,
        ),
        pytest.param(
            [*LAUNCH, "--nproc-per-node", "2"],
            lambda port: [{}],
            2,
            False,
            id="launch-on-one-host-no-torch",
        ),
        pytest.param([], lambda port: [{}], 1, False, id="python-no-torch"),
    ],
)
def test_one_script_trains_together_whatever_started_it(cluster, command, environs, size, torch):
    script = write(cluster, TOGETHER)
    if not torch:
        (cluster.folder / "site").mkdir()
        (cluster.folder / "site" / "sitecustomize.py").write_text(NO_TORCH)
        paths = [str(cluster.folder / "site"), os.environ.get("PYTHONPATH", "")]
        hidden = {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    else:
        hidden = {}
    for environ in environs(free_port()):
        cluster.start([*command, script[1]] if command else script, **environ, **hidden)
    cluster.end()
    words = told(cluster)
    assert len(words) == size
    assert len(set(words)) == 1, "all ranks have the same model"
    assert words[0].endswith(f" {size} [[{size}, {sum(range(size))}]] False")


@pytest.mark.skipif(MPIRUN is None, reason="mpirun is not installed")
def test_mpirun(cluster):
    write(cluster, TOGETHER)
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    options = ["--oversubscribe", "--bind-to", "none", "-n", "2"]
    cluster.start([MPIRUN, *root, *options, PYTHON, "train.py"])
    cluster.end()
    words = told(cluster)
    assert len(words) == 2
    assert len(set(words)) == 1


def test_torchrun_serves_its_own_store(cluster):
    pytest.importorskip("torch")
    write(cluster, TOGETHER.replace('"torch" in sys.modules', "True"))
    cluster.start([PYTHON, "-m", "torch.distributed.run", "--nproc-per-node=2", "train.py"])
    cluster.end()
    assert len(set(told(cluster))) == 1


def test_two_ranks_grow_the_trees_of_one_process(cluster):
    """Exactly so in the first round, whose gradients are ±½, so that sums have no order.

    Columns have no more distinct values than bins, so that the cuts are the same. Later on
    leaves differ in their last bits, as sums in another order do.
    """
    write(cluster, EQUAL)
    start_two_pods(cluster, [PYTHON, "train.py"])
    cluster.end()
    words = told(cluster)
    assert len(set(words)) == 1
    assert words[0].endswith("first round True")


def unbroken(cluster, rounds=20):
    """The model of a run that nobody disturbs, and a clean folder after it."""
    write(cluster, RESUMES.replace("ROUNDS", str(rounds)))
    start_two_pods(cluster, [PYTHON, "train.py"])
    cluster.end()
    words = told(cluster)
    assert len(set(words)) == 1
    assert words[0].endswith(f"{rounds} began None")
    cluster.pods.clear()
    shutil.rmtree(cluster.folder / "ckpt")
    return words[0].split()[0]


@pytest.mark.parametrize("victim", [0, 1], ids=["rank-0-with-the-tracker", "a-worker"])
@pytest.mark.parametrize("where", [pytest.param("one-pod", marks=SLOW), "two-pods"])
def test_a_killed_rank_is_started_again_in_place_and_the_model_is_the_same(cluster, victim, where):
    model = unbroken(cluster)
    flags = ["--max-restarts", "1", "train.py"]
    if where == "two-pods":
        start_two_pods(cluster, [*LAUNCH, *flags], VICTIM=str(victim))
    else:
        cluster.start([*LAUNCH, "--nproc-per-node", "2", *flags], VICTIM=str(victim))
    cluster.end()
    assert (cluster.folder / "died").exists()
    words = told(cluster)
    assert {word.split()[0] for word in words} == {model}
    assert all(word.endswith("20 began 10") for word in words), words
    if where == "two-pods":
        survivor = cluster.pods[1 - victim].output
        assert f"lost rank(s) {victim} of 2 in a collective of XGBoost" in survivor
        assert "Traceback" not in survivor


@pytest.mark.parametrize("victim", [0, 2])
def test_without_a_launcher_the_others_end_retryable_and_name_the_dead(cluster, victim):
    write(cluster, RESUMES.replace("ROUNDS", "20"))
    port = free_port()
    for pod in range(3):
        cluster.start([PYTHON, "train.py"], VICTIM=str(victim), **xgboostjob(pod, 3, port))
    cluster.end(codes=[-9 if pod == victim else 138 for pod in range(3)])
    for pod in range(3):
        if pod != victim:
            assert f"rank {pod} lost rank(s) {victim} of 3" in cluster.pods[pod].output


@pytest.mark.parametrize("told_pod", [1, pytest.param(0, marks=SLOW)])
def test_sigterm_saves_the_same_round_on_all_ranks_and_the_run_goes_on(cluster, told_pod):
    model = unbroken(cluster, rounds=150)
    pods = start_two_pods(cluster, [PYTHON, "train.py"], SLOWLY="1")
    read_until(pods[told_pod], "round 9")
    os.kill(pods[told_pod].process.pid, signal.SIGTERM)
    cluster.end(codes=[143, 143])
    saved = sorted(path.parent.name[5:15] for path in cluster.folder.glob("ckpt/*/MANIFEST.json"))
    stopped = int(saved[-1])
    assert 9 <= stopped < 150
    cluster.pods.clear()
    start_two_pods(cluster, [PYTHON, "train.py"])
    cluster.end()
    words = told(cluster)
    assert all(word.endswith(f"150 began {stopped}") for word in words), words
    assert {word.split()[0] for word in words} == {model}


def test_a_notice_in_the_first_of_two_trainings_is_a_notice(cluster):
    """The second has nothing to save yet, which is no error."""
    write(cluster, TWO_TRAININGS)
    pod = cluster.start([PYTHON, "train.py"])
    cluster.end(codes=[143])
    assert "Traceback" not in pod.output
    cluster.pods.clear()
    cluster.start([PYTHON, "train.py"])
    cluster.end()
    assert told(cluster) == ["9 9"]


def test_b109_a_worker_that_never_comes_is_named_at_a_deadline(cluster):
    write(cluster, TOGETHER)
    port = free_port()
    for pod in (0, 1):
        cluster.start([PYTHON, "train.py"], **xgboostjob(pod, 3, port), TRAINKIT_TIMEOUT="4")
    cluster.end(seconds=90, codes=[138, 138])
    first, second = (pod.output for pod in cluster.pods)
    assert "missing: rank 2" in first
    # its own deadline may be a moment later than that of rank 0, which takes the store with it
    assert "missing: rank 2" in second or "look at the log of rank 0" in second
    assert "Traceback" not in first + second


def test_b109_a_worker_without_rows_takes_part(cluster):
    """Two rows for three ranks: the last has none."""
    write(
        cluster,
        """
def main(ctx):
    rows = ctx.shard([0, 399])
    x, y = table(rows)
    y[:] = ctx.rank  # one row of each class
    data = xgboost.QuantileDMatrix(x.reshape(-1, 6), y)
    model = xgboost.train({**PARAMS, "min_child_weight": 0}, data, 3)
    tell(ctx, digest(model), data.num_row() == len(rows), model.num_boosted_rounds())
""",
    )
    port = free_port()
    for pod in range(3):
        cluster.start([PYTHON, "train.py"], **xgboostjob(pod, 3, port))
    cluster.end()
    words = told(cluster)
    assert len(set(words)) == 1
    assert words[0].endswith("True 3")


def test_b111_localhost_works_and_a_name_that_comes_late_is_awaited(cluster):
    port = free_port()
    write(cluster, TOGETHER)
    write(cluster, LATE_NAME + TOGETHER, "late.py")
    address = {"MASTER_ADDR": "localhost"}
    cluster.start([PYTHON, "train.py"], **xgboostjob(0, 2, port) | address)
    late = {"MASTER_ADDR": "late-master-0"}
    cluster.start([PYTHON, "late.py"], **xgboostjob(1, 2, port) | late)
    cluster.end()
    assert len(set(told(cluster))) == 1
    waited = cluster.pods[1].output
    assert "the name late-master-0 is not known to DNS" in waited


def test_b113_a_rank_that_is_late_is_named_when_the_time_is_over(cluster):
    write(cluster, LATE_RANK.replace("LATE", "15"))
    start_two_pods(cluster, [PYTHON, "train.py"], TRAINKIT_TIMEOUT="6")
    cluster.end(codes=[138, 138])
    message = "rank 0 waited 6 s in a collective of XGBoost for rank(s) 1 of 2"
    assert message in cluster.pods[0].output
    assert "TRAINKIT_TIMEOUT" in cluster.pods[0].output


@pytest.mark.slow
def test_b113_a_rank_that_takes_70_s_to_load_its_rows_holds_nobody_up(cluster):
    write(cluster, LATE_RANK.replace("LATE", "70"))
    environ = {"TRAINKIT_TIMEOUT": ""}  # the default
    start_two_pods(cluster, [PYTHON, "train.py"], **environ)
    cluster.end()
    assert len(set(told(cluster))) == 1


def test_a_thread_of_the_users_trains_together_or_is_refused(cluster):
    write(cluster, THREADS)
    start_two_pods(cluster, [PYTHON, "train.py"])
    cluster.end()
    assert told(cluster) == ["True True", "True True"]


def test_what_the_context_offers(cluster):
    write(cluster, INTERFACE)
    start_two_pods(cluster, [PYTHON, "train.py"])
    cluster.end()
    assert told(cluster) == ["done", "done"]


def test_a_rank_ends_though_the_host_of_the_tracker_has_frozen(cluster):
    """XGBoost's own farewell would wait for the tracker for as long as a collective may take."""
    write(cluster, FAILS)
    pods = start_two_pods(cluster, [PYTHON, "train.py"])
    for pod in pods:
        read_until(pod, "here")
    os.kill(pods[0].process.pid, signal.SIGSTOP)
    began = time.monotonic()
    assert pods[1].end(began + 60) == 70
    assert "bad batch" in pods[1].output


def test_an_error_of_one_rank_is_its_own_and_the_others_are_retryable(cluster):
    write(
        cluster,
        """
def main(ctx):
    def act():
        if ctx.rank == 1:
            raise KeyError("mine")
    train(ctx, 9, [At(4, act)])
""",
    )
    start_two_pods(cluster, [PYTHON, "train.py"])
    cluster.end(codes=[138, 70])
    assert "lost rank(s) 1 of 2" in cluster.pods[0].output
    assert "KeyError: 'mine'" in cluster.pods[1].output


def test_two_frameworks_in_one_pod_are_a_choice(cluster):
    pytest.importorskip("torch")
    write(cluster, "import torch\n" + TOGETHER)
    pod = cluster.start([PYTHON, "train.py"])
    cluster.end(codes=[2])
    assert "torch and xgboost" in pod.output
    assert json.dumps("torch:auto")[1:-1] in pod.output
