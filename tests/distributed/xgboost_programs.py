"""Programs that the tests of XGBoost run as ranks; each begins with TRAIN and ends with MAIN."""

__all__ = [
    "EQUAL",
    "FAILS",
    "INTERFACE",
    "LATE_NAME",
    "LATE_RANK",
    "MAIN",
    "NO_TORCH",
    "RESUMES",
    "THREADS",
    "TOGETHER",
    "TRAIN",
    "TWO_TRAININGS",
]

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

LATE_RANK = """
def main(ctx):
    print("in main", flush=True)
    if ctx.rank == 1:
        time.sleep(LATE)
    tell(ctx, digest(train(ctx, 3)))
"""

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
    assert ctx.all_reduce([me, 2], "sum").tolist() == [1, 4]
    assert ctx.device == "cpu" and len(ctx.shard(range(5))) == 3 - me
    assert ctx.broadcast_object(me, src=1) == 1
    ctx.barrier()
    tell(ctx, "done")
"""

FAILS = """
def main(ctx):
    print("here", flush=True)
    if ctx.rank == 0:
        time.sleep(600)
    sys.stdin.readline()
    time.sleep(1)
    raise ValueError("bad batch")
"""

TWO_TRAININGS = """
def main(ctx):
    def stop():
        if not os.path.exists("stopped"):
            open("stopped", "w").close()
            os.kill(os.getpid(), signal.SIGTERM)
            while not ctx.preempted:
                time.sleep(0.01)
    x, y = table(ctx.shard(range(400)))
    data = xgboost.QuantileDMatrix(x, y)
    names = ["first", "second"]
    opened = [ctx.checkpoints(name, booster=xgboost.Booster(PARAMS)) for name in names]
    models = []
    for checkpoints in opened:
        saving = ctx.save_callback(checkpoints)
        checkpoints.restore_latest()
        models.append(xgboost.train(PARAMS, data, saving.rounds_left(9),
            xgb_model=saving.model, callbacks=[At(4, stop), saving]))
    tell(ctx, *(model.num_boosted_rounds() for model in models))
"""
