"""``xgboost.train`` under ``SaveCheckpoints``: killed, stopped and begun again, the same model."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from trainkit.checkpoint import CheckpointManager
from trainkit.errors import Preempted, UsageError

xgboost = pytest.importorskip("xgboost", reason="needs xgboost-cpu: trainkit[xgboost-cpu]")

from trainkit.checkpoint.xgboost import SaveCheckpoints  # noqa: E402 - needs xgboost

PARAMS = {
    "trees": {"max_depth": 3},
    "sampled": {"max_depth": 3, "subsample": 0.5, "colsample_bynode": 0.5, "seed": 3},
    "seeded": {"max_depth": 3, "subsample": 0.5, "seed_per_iteration": True},
    "exact": {"max_depth": 3, "subsample": 0.5, "tree_method": "exact"},
    "dart": {"booster": "dart", "rate_drop": 0.3, "subsample": 0.7},
    "one_drop": {"booster": "dart", "one_drop": 1},
    "linear": {"booster": "gblinear", "updater": "coord_descent", "feature_selector": "random"},
}

JOB = textwrap.dedent("""
    import json, sys
    import numpy as np, xgboost
    from trainkit.checkpoint import CheckpointManager, EverySteps
    from trainkit.checkpoint.xgboost import SaveCheckpoints

    def data():
        rng = np.random.default_rng(0)
        x = rng.normal(size=(400, 8)).astype(np.float32)
        y = x[:, 0] + x[:, 1] ** 2 + rng.normal(size=400) * 0.1
        return xgboost.DMatrix(x[:300], y[:300]), xgboost.DMatrix(x[300:], y[300:])

    class Tell(xgboost.callback.TrainingCallback):
        def __init__(self, tell):
            self.tell = tell

        def after_iteration(self, model, epoch, evals_log):
            return bool(self.tell(model.num_boosted_rounds()))

    def job(url, params, rounds, patience, tell, every=5, monitor=None, save_best=False, first=()):
        params = {"nthread": 1, **params}
        train, val = data()
        booster, log = xgboost.Booster(params), {}
        stop = xgboost.callback.EarlyStopping(rounds=patience, save_best=save_best)
        state = {"booster": booster, "log": log, "stop": stop}
        manager = CheckpointManager(url, state, save=EverySteps(every), monitor=monitor)
        manager.restore_latest()
        saving = SaveCheckpoints(manager, log=log)
        try:
            model = xgboost.train(
                params, train, saving.rounds_left(rounds), xgb_model=saving.model,
                evals=[(train, "train"), (val, "val")], verbose_eval=False,
                callbacks=[*first, stop, saving, Tell(tell)],
            )
        finally:
            manager.close()
        return model, log, stop
""")

PROCESS = JOB + textwrap.dedent("""
    from trainkit.lifecycle.monitor import RankMonitor
    monitor = RankMonitor()
    monitor.start()
    model, log, stop = job(
        sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), 1000,
        lambda rounds: print(rounds, flush=True), monitor=monitor,
    )
    model.save_model(sys.argv[1] + "/../final.ubj")
    with open(sys.argv[1] + "/../log.json", "w") as file:
        json.dump(log, file)
""")

names = {}
exec(JOB, names)
job, load = names["job"], names["data"]


class Stopped(Exception):
    """Ends training in the middle, like a kill."""


def stopped_at(number):
    def tell(rounds):
        if rounds == number:
            raise Stopped

    return tell


def outcome(model, log, stop):
    return (
        bytes(model.save_raw("ubj")),
        log,
        stop.stopping_history,
        stop.best_scores,
        stop.current_rounds,
    )


@pytest.mark.parametrize("kind", PARAMS)
def test_a_broken_run_ends_as_the_unbroken_one(tmp_path, kind):
    unbroken = job(tmp_path / "a", PARAMS[kind], 20, 1000, lambda rounds: None)
    for number in (3, 12, 13):
        with pytest.raises(Stopped):
            job(tmp_path / "b", PARAMS[kind], 20, 1000, stopped_at(number))
    broken = job(tmp_path / "b", PARAMS[kind], 20, 1000, lambda rounds: None)
    assert outcome(*broken) == outcome(*unbroken)
    assert len(broken[1]["val"]["rmse"]) == 20


@pytest.mark.parametrize("save_best", [False, True])
def test_early_stopping_resumes_its_patience(tmp_path, save_best):
    params = {"max_depth": 6, "eta": 1.0}  # overfits soon

    def run(folder, tell):
        return job(tmp_path / folder, params, 200, 8, tell, every=3, save_best=save_best)

    unbroken = run("a", lambda rounds: None)
    best = unbroken[0].best_iteration
    assert unbroken[0].num_boosted_rounds() == best + (1 if save_best else 9) < 200
    with pytest.raises(Stopped):  # past the best round: patience is running
        run("b", stopped_at(best + 6))
    broken = run("b", lambda rounds: None)
    assert outcome(*broken) == outcome(*unbroken)
    assert (broken[0].best_iteration, broken[0].best_score) == (best, unbroken[0].best_score)
    ended = run("b", lambda rounds: pytest.fail("a round too many"))
    assert outcome(*ended) == outcome(*unbroken)


def test_early_stopping_in_the_first_round_of_a_start_keeps_its_score(tmp_path):
    def run(folder, tell):
        return job(tmp_path / folder, {"max_depth": 6, "eta": 1.0}, 200, 8, tell, every=1)

    unbroken = run("a", lambda rounds: None)
    last = unbroken[0].num_boosted_rounds() - 1
    with pytest.raises(Stopped):
        run("b", stopped_at(last))
    assert outcome(*run("b", lambda rounds: None)) == outcome(*unbroken)
    assert len(unbroken[1]["val"]["rmse"]) == last + 1


def test_the_schedule_of_the_docs_goes_on_after_a_restart(tmp_path):
    docs = Path(__file__).parents[2] / "docs/xgboost.md"
    if not docs.exists():
        pytest.skip("no docs beside the installed package")
    (code,) = re.findall(r"```python\n( *class Schedule.*?)```", docs.read_text(), re.DOTALL)
    made = {"xgboost": xgboost}
    exec(textwrap.dedent(code), made)

    def run(folder, tell):
        return job(tmp_path / folder, {}, 20, 1000, tell, first=[made["Schedule"]()])

    unbroken = run("a", lambda rounds: None)
    with pytest.raises(Stopped):
        run("b", stopped_at(12))
    assert outcome(*run("b", lambda rounds: None)) == outcome(*unbroken)
    assert outcome(*unbroken) != outcome(*job(tmp_path / "c", {}, 20, 1000, lambda rounds: None))


def test_a_new_run_has_all_rounds_left(tmp_path):
    manager = CheckpointManager(tmp_path, {"booster": xgboost.Booster()})
    assert SaveCheckpoints(manager).rounds_left(7) == 7
    assert SaveCheckpoints(manager).model is None
    manager.close()


def test_rounds_and_scores_are_in_the_manifest(tmp_path):
    job(tmp_path, {"max_depth": 2}, 5, 1000, lambda rounds: None)
    reader = CheckpointManager(tmp_path, {})
    assert reader.all_steps() == [5]
    reader.close()
    from trainkit.checkpoint.format import catalog
    from trainkit.storage import open_storage

    ((_, manifest),) = catalog.valid(open_storage(tmp_path))
    assert set(manifest.metrics) == {"train-rmse", "val-rmse"}


def test_what_goes_wrong_is_said(tmp_path):
    train, val = load()
    log = {}
    stop = xgboost.callback.EarlyStopping(rounds=5)
    state = {"booster": xgboost.Booster(), "log": log, "stop": stop}
    manager = CheckpointManager(tmp_path / "a", state)
    with pytest.raises(UsageError, match="log= is no entry"):
        SaveCheckpoints(manager, log={})
    with pytest.raises(UsageError, match="none is 'model'"):
        SaveCheckpoints(manager, entry="model")
    saving = SaveCheckpoints(manager, log=log)
    with pytest.raises(UsageError, match="has to come after EarlyStopping"):
        xgboost.train({}, train, 5, evals=[(val, "val")], callbacks=[saving, stop])
    with pytest.raises(UsageError, match="cross-validation"):
        xgboost.cv({}, train, 2, callbacks=[SaveCheckpoints(manager)])
    manager.close()
    for boosters in (0, 2):
        state = {f"b{number}": xgboost.Booster() for number in range(boosters)}
        manager = CheckpointManager(tmp_path / str(boosters), state)
        with pytest.raises(UsageError, match="expected one, or entry="):
            SaveCheckpoints(manager)
        manager.close()


class Stopping:
    """A monitor that was told to stop before the first step."""

    last_step, stirred = None, True

    def stop_now(self, step):
        return True


def test_a_stop_before_the_first_round_has_nothing_to_save(tmp_path):
    """Of a training that comes after the one that is stopped."""
    state = {"booster": xgboost.Booster()}
    manager = CheckpointManager(tmp_path, state, monitor=Stopping())
    with pytest.raises(Preempted, match="what was not trained yet: booster"):
        manager.step(3)
    assert manager.all_steps() == []
    manager.close()


def run(folder, params, rounds, until=None, how=signal.SIGKILL, delay=0.0):
    """Run the job in a process; end it by ``how`` after the line ``until``."""
    child = subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(folder), json.dumps(params), str(rounds)],
        stdout=subprocess.PIPE,
        text=True,
    )
    seen = []
    with child:
        try:
            for line in child.stdout:
                seen.append(int(line))
                if until is not None and len(seen) == until:
                    try:
                        child.wait(timeout=delay)
                    except subprocess.TimeoutExpired:
                        os.kill(child.pid, how)
                    until = None
            child.wait(timeout=120)
        finally:
            child.kill()
    return child.returncode, seen


@pytest.mark.parametrize("kind", ["trees", "sampled"])
def test_kill_9_and_restart_end_in_the_same_model(tmp_path, kind):
    rounds = 40
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert run(tmp_path / "a/run", PARAMS[kind], rounds)[0] == 0
    rng = random.Random(3)
    killed = 0
    for _ in range(4):
        until, delay = rng.randint(4, 12), rng.uniform(0.0, 0.02)
        code, seen = run(tmp_path / "b/run", PARAMS[kind], rounds, until, delay=delay)
        killed += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL)
    assert killed >= 2
    code, seen = run(tmp_path / "b/run", PARAMS[kind], rounds)
    assert code == 0
    assert seen[-1:] in ([rounds], [])
    for name in ("final.ubj", "log.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_sigterm_saves_the_round_and_ends_with_143(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert run(tmp_path / "a/run", PARAMS["trees"], 300)[0] == 0
    code, seen = run(tmp_path / "b/run", PARAMS["trees"], 300, until=7, how=signal.SIGTERM)
    assert code == 143
    assert seen[-1] < 300
    code, rest = run(tmp_path / "b/run", PARAMS["trees"], 300)
    assert code == 0
    # Tell comes after SaveCheckpoints, so that the round of the stop was done and not told of
    assert rest[0] == seen[-1] + 2
    for name in ("final.ubj", "log.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
