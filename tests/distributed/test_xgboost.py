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
from trainkit.testing import free_port

pytest.importorskip("xgboost", reason="needs xgboost-cpu: trainkit[xgboost-cpu]")

TRAIN = """
import glob, hashlib, os, signal, sys, threading, time
import numpy as np, xgboost, trainkit

PARAMS = {"objective": "binary:logistic", "nthread": 1, "max_depth": 4, "eval_metric": "logloss"}

def table(rows):
    # whole numbers: as many distinct values a column as bins, so that cuts do not depend on ranks
    rng = np.random.default_rng(0)
    x = rng.integers(0, 50, size=(400, 6)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] * x[:, 2] / 40 > 45).astype(np.float32)
    return x[rows], y[rows]

class At(xgboost.callback.TrainingCallback):
    def __init__(self, round_, act):
        super().__init__()
        self.round, self.act = round_, act
    def after_iteration(self, model, epoch, evals_log):
        if model.num_boosted_rounds() == self.round:
            self.act()
        return False

def train(ctx, rounds, callbacks=(), params=PARAMS):
    x, y = table(ctx.shard(range(400)))
    data = xgboost.QuantileDMatrix(x.reshape(-1, 6), y)
    return xgboost.train({**params, "device": ctx.device}, data, rounds, callbacks=[*callbacks])

def digest(model):
    return hashlib.md5(bytes(model.save_raw("ubj"))).hexdigest()

def tell(ctx, *words):
    # in one write, since ranks share a stream under torchrun
    sys.stdout.write(" ".join(map(str, ["told", ctx.rank, ctx.world_size, *words])) + "\\n")
    sys.stdout.flush()
"""
"""What the scripts of these tests begin with."""

MAIN = """
if __name__ == "__main__":
    trainkit.run(main)
"""

TOGETHER = """
def main(ctx):
    model = train(ctx, 5)
    counts = ctx.all_reduce(np.array([[1, ctx.rank]]), "sum")
    tell(ctx, digest(model), xgboost.collective.get_world_size(), counts.tolist(),
         "torch" in sys.modules)
"""

NO_TORCH = """
import sys
from importlib.machinery import PathFinder

class WithoutTorch:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            return None
        return PathFinder.find_spec(name, path, target)
    invalidate_caches = PathFinder.invalidate_caches

sys.meta_path = [WithoutTorch if finder is PathFinder else finder for finder in sys.meta_path]
"""
"""A ``sitecustomize``: Python as it is in an image without torch."""

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
        ),
        pytest.param(
            LAUNCH,
            lambda port: [xgboostjob(n, 2, port) for n in (0, 1)],
            2,
            False,
            id="launch-v1-no-torch",
        ),
        pytest.param(
            [*LAUNCH, "--nproc-per-node", "2"], lambda port: [{}], 2, True, id="launch-on-one-host"
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


EQUAL = """
def leaves(model):
    return model.trees_to_dataframe().drop(columns=["Gain", "Cover"])

def lone(ctx):
    found = []
    def work():
        with ctx.native.alone():
            x, y = table(slice(None))
            found.append(xgboost.train(PARAMS, xgboost.QuantileDMatrix(x, y), 30))
    thread = threading.Thread(target=work)
    thread.start(); thread.join()
    return found[0]

def trees(model):
    import json
    dumps = [json.loads(tree) for tree in model.get_dump(dump_format="json")]
    found = []
    def walk(node):
        if "leaf" in node:
            found.append(("leaf", node["leaf"]))
        else:
            found.append((node["split"], node["split_condition"]))
            for child in node["children"]:
                walk(child)
    for tree in dumps:
        walk(tree)
    return found

def main(ctx):
    ours, alone = train(ctx, 30), lone(ctx)
    x, y = table(slice(None))
    a, b = trees(ours), trees(alone)
    assert len(a) == len(b) > 100, (len(a), len(b))
    assert [kind for kind, _ in a] == [kind for kind, _ in b], "the same splits"
    assert [v for k, v in a if k != "leaf"] == [v for k, v in b if k != "leaf"], "and cuts"
    worst = max(abs(u - v) for (k, u), (_, v) in zip(a, b) if k == "leaf")
    apart = np.abs(ours.inplace_predict(x) - alone.inplace_predict(x)).max()
    assert worst < 1e-5 and apart < 1e-6, (worst, apart)
    first, second = (xgboost.Booster(model_file=bytearray(m[:1].save_raw())) for m in (ours, alone))
    tell(ctx, digest(ours), "first round", first.get_dump() == second.get_dump())
"""


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


RESUMES = """
SAMPLED = {**PARAMS, "subsample": 0.7, "seed": 3}

def main(ctx):
    booster, log = xgboost.Booster(SAMPLED), {}
    checkpoints = ctx.checkpoints("ckpt", save=5, booster=booster, log=log)
    saving = ctx.save_callback(checkpoints, log=log)
    began = checkpoints.restore_latest()
    victim = os.environ.get("VICTIM")
    def die():
        if str(ctx.rank) == victim and not os.path.exists("died"):
            # A save under way would be lost with this rank, or not: wait for it.
            while not glob.glob("ckpt/step-0000000010*/MANIFEST.json"):
                time.sleep(0.01)
            open("died", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
    def say():
        print("round 9", flush=True)
    def rest():
        time.sleep(0.02 if os.environ.get("SLOWLY") else 0)
    x, y = table(ctx.shard(range(400)))
    data = xgboost.QuantileDMatrix(x, y)
    every = [At(n, rest) for n in range(1, 200)]
    model = xgboost.train({**SAMPLED, "device": ctx.device}, data, saving.rounds_left(ROUNDS),
        xgb_model=saving.model, evals=[(data, "train")], verbose_eval=False,
        callbacks=[At(12, die), At(9, say), *every, saving])
    tell(ctx, digest(model), len(log["train"]["logloss"]), "began", began)
"""


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
@pytest.mark.parametrize("where", ["one-pod", "two-pods"])
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


@pytest.mark.parametrize("told_pod", [0, 1])
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


def test_b109_a_worker_that_never_comes_is_named_at_a_deadline(cluster):
    write(cluster, TOGETHER)
    port = free_port()
    for pod in (0, 1):
        cluster.start([PYTHON, "train.py"], **xgboostjob(pod, 3, port), TRAINKIT_TIMEOUT="4")
    cluster.end(seconds=90, codes=[138, 138])
    for pod in cluster.pods:
        assert "missing: rank 2" in pod.output
        assert "Traceback" not in pod.output


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


LATE_NAME = """
import socket
_known, _from = socket.getaddrinfo, time.monotonic() + 7
def _late(host, *rest, **named):
    if host == "late-master-0":
        if time.monotonic() < _from:
            raise socket.gaierror(-2, "Name or service not known")
        host = "127.0.0.1"
    return _known(host, *rest, **named)
socket.getaddrinfo = _late
"""
"""DNS as in a cluster: the name of the first pod is there after the pod."""


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


LATE_RANK = """
def main(ctx):
    print("in main", flush=True)
    if ctx.rank == 1:
        time.sleep(LATE)
    tell(ctx, digest(train(ctx, 3)))
"""


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


THREADS = """
def in_thread(work):
    caught = []
    def run():
        try:
            work()
        except BaseException as error:
            caught.append(error)
    thread = threading.Thread(target=run, name="user")
    thread.start(); thread.join()
    return caught[0] if caught else None

def main(ctx):
    model = digest(train(ctx, 5))
    refused = in_thread(lambda: train(ctx, 5))
    assert isinstance(refused, trainkit.TrainkitError), refused
    assert "in thread 'user'" in str(refused) and "ctx.native.communicator" in str(refused)
    assert "'user'" in str(in_thread(lambda: ctx.all_reduce(1)))
    found = []
    def together():
        for _ in range(2):
            with ctx.native.communicator("second"):
                found.append(digest(train(ctx, 5)))
                assert ctx.all_reduce(1, "sum") == 2
    failed = in_thread(together)
    assert failed is None, failed
    try:
        with ctx.native.communicator("main"): pass
    except trainkit.TrainkitError as error:
        assert "is connected already" in str(error)
    else:
        raise AssertionError("a second communicator in main's thread")
    tell(ctx, model == found[0] == found[1], digest(train(ctx, 5)) == model)
"""


def test_a_thread_of_the_users_trains_together_or_is_refused(cluster):
    write(cluster, THREADS)
    start_two_pods(cluster, [PYTHON, "train.py"])
    cluster.end()
    assert told(cluster) == ["True True", "True True"]


INTERFACE = """
def refused(call):
    try:
        call()
    except trainkit.TrainkitError as error:
        assert error.exit_code == 78, error
        return str(error)
    raise AssertionError("not refused")

def main(ctx):
    assert "ctx.shard(items)" in refused(lambda: ctx.setup(xgboost.Booster()))
    assert "ctx.shard(items)" in refused(lambda: ctx.setup_dataloader([1, 2]))
    assert "accumulates nothing" in refused(lambda: ctx.no_sync(None).__enter__())
    assert "got str" in refused(lambda: ctx.all_reduce("x"))
    me, n = ctx.rank, ctx.world_size
    assert ctx.all_reduce(me, "sum") == 1 and type(ctx.all_reduce(me, "max")) is int
    assert ctx.all_reduce(2**60 + me, "min") == 2**60
    assert ctx.all_reduce(me) == 0.5 and ctx.all_reduce(me == 0, "sum") == 1
    for dtype in (np.float32, np.float64, np.int32):
        value = np.arange(6, dtype=dtype).reshape(2, 3)[:, ::-1] + me
        total = ctx.all_reduce(value, "sum")
        assert total.dtype == dtype and total.tolist() == [[5, 3, 1], [11, 9, 7]], total
    assert ctx.device == "cpu" and len(ctx.shard(range(5))) == 3 - me
    assert ctx.broadcast_object(me, src=1) == 1
    ctx.barrier()
    tell(ctx, "done")
"""


def test_what_the_context_offers(cluster):
    write(cluster, INTERFACE)
    start_two_pods(cluster, [PYTHON, "train.py"])
    cluster.end()
    assert told(cluster) == ["done", "done"]


FAILS = """
def main(ctx):
    print("here", flush=True)
    if ctx.rank == 0:
        time.sleep(600)
    sys.stdin.readline()
    time.sleep(1)
    raise ValueError("bad batch")
"""


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
