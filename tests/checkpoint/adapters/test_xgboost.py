"""Boosters are saved as XGBoost's own file, and given back into the same object."""

import json

import numpy as np
import pytest

from trainkit import PerRank
from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.checkpoint.adapters.base import Saved
from trainkit.errors import CheckpointDamagedError, EnvironmentFaultError, UsageError

xgboost = pytest.importorskip("xgboost", reason="needs xgboost-cpu: trainkit[xgboost-cpu]")

from trainkit.checkpoint.adapters.xgboost import (  # noqa: E402 - needs xgboost
    BoosterAdapter,
    EarlyStoppingAdapter,
    rounds_of,
)

TREES = {"max_depth": 3, "nthread": 1}
KINDS = {
    "trees": TREES,
    "exact": {"tree_method": "exact", **TREES},
    "forest": {"num_parallel_tree": 2, **TREES},
    "dart": {"booster": "dart", **TREES},
    "linear": {"booster": "gblinear", "updater": "coord_descent", "nthread": 1},
    "classes": {"objective": "multi:softprob", "num_class": 3, **TREES},
}


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)).astype(np.float32)
    return xgboost.DMatrix(x, (x[:, 0] + x[:, 1] ** 2 > 1).astype(np.float32) + (x[:, 2] > 0))


def trained(params, data, rounds, booster=None):
    # One that is not trained must not be asked for its rounds: see rounds_of.
    begin = 0 if booster is None else rounds_of(booster)
    booster = booster or xgboost.Booster(params, [data])
    for number in range(begin, rounds):
        booster.update(data, number)
    return booster


def save(folder, state, step=1):
    manager = CheckpointManager(folder, state)
    manager.save(step, blocking=True)
    manager.close()
    (found,) = folder.glob(f"step-{step:010d}.*")
    return found


def restore(folder, state):
    return CheckpointManager(
        folder, state, options=CheckpointOptions(read_only=True)
    ).restore_latest()


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_booster_goes_on_as_if_nothing_had_been(tmp_path, data, kind):
    unbroken = trained(KINDS[kind], data, 10)
    save(tmp_path, {"booster": trained(KINDS[kind], data, 6)})
    booster = same = xgboost.Booster(KINDS[kind], [data])
    assert restore(tmp_path, {"booster": booster}) == 1
    assert rounds_of(booster) == 6
    trained(KINDS[kind], data, 10, booster)
    assert booster is same
    assert booster.save_raw("ubj") == unbroken.save_raw("ubj")
    assert booster.get_dump(with_stats=True) == unbroken.get_dump(with_stats=True)
    assert np.array_equal(booster.predict(data), unbroken.predict(data))


def test_on_disk_it_is_a_model_and_nothing_else(tmp_path, data):
    booster = trained(TREES, data, 4)
    booster.set_attr(best_score="0.5", note="mine")
    booster.feature_names = list("abcdef")
    folder = save(tmp_path, {"booster": booster})
    # what a server of models looks for: one file of a known name
    assert [path.name for path in (folder / "booster").iterdir()] == ["model.ubj"]
    booster.save_model(tmp_path / "own.ubj")
    assert (folder / "booster/model.ubj").read_bytes() == (tmp_path / "own.ubj").read_bytes()
    plain = xgboost.Booster(model_file=folder / "booster/model.ubj")
    assert plain.attributes() == {"best_score": "0.5", "note": "mine"}
    assert plain.feature_names == list("abcdef")
    facts = json.loads((folder / "state/booster.json").read_text())
    assert facts == {
        "rounds": 4,
        "booster": "gbtree",
        "num_features": 6,
        "attributes": {"best_score": "0.5", "note": "mine"},
        "written_by": f"XGBoost {xgboost.__version__}",
    }


def test_parameters_of_the_run_stay(tmp_path, data):
    save(tmp_path, {"booster": trained({"eta": 0.3, **TREES}, data, 3)})
    booster = xgboost.Booster({"eta": 0.01, "max_depth": 2, "nthread": 1})
    restore(tmp_path, {"booster": booster})
    booster.update(data, 3)
    config = json.loads(booster.save_config())["learner"]["gradient_booster"]
    assert float(config["tree_train_param"]["eta"]) == pytest.approx(0.01)
    assert config["tree_train_param"]["max_depth"] == "2"


def test_several_boosters_and_other_entries(tmp_path, data):
    log = {"train": {"rmse": [0.5, 0.25]}}
    one, two = trained(TREES, data, 2), trained(KINDS["linear"], data, 5)
    save(tmp_path, {"one": one, "two": two, "log": log, "mean": np.arange(3.0)})
    state = {
        "one": xgboost.Booster(TREES),
        "two": xgboost.Booster(KINDS["linear"]),
        "log": {},
        "mean": np.zeros(3),
    }
    restore(tmp_path, state)
    assert (rounds_of(state["one"]), rounds_of(state["two"])) == (2, 5)
    assert state["log"] == log
    assert state["mean"].tolist() == [0, 1, 2]


def test_early_stopping_goes_on_counting(tmp_path):
    stop = xgboost.callback.EarlyStopping(rounds=3)
    stop.stopping_history = {"val": {"rmse": [0.5, np.float64(0.25), 0.3]}}
    stop.best_scores = {"val": {"rmse": [0.5, 0.25]}}
    stop.current_rounds = 1
    save(tmp_path, {"stop": stop})
    fresh = xgboost.callback.EarlyStopping(rounds=3)
    restore(tmp_path, {"stop": fresh})
    assert fresh.stopping_history == {"val": {"rmse": [0.5, 0.25, 0.3]}}
    assert fresh.best_scores == {"val": {"rmse": [0.5, 0.25]}}
    assert fresh.current_rounds == 1


@pytest.mark.parametrize("facts", [None, [], 1, {}, {"rounds": 3}])
def test_values_that_do_not_fit_the_model_are_damage(data, facts):
    model = trained(TREES, data, 2).save_raw("ubj")
    saved = {
        "booster/model.ubj": Saved({}, raw=lambda: memoryview(model)),
        "state/booster": Saved({}, facts),
    }
    with pytest.raises(CheckpointDamagedError, match=r"state/booster\.json"):
        BoosterAdapter().prepare("booster", {"booster": xgboost.Booster()}, saved)


@pytest.mark.parametrize(
    "state",
    [None, [], {}, {"stopping_history": [], "best_scores": {}, "current_rounds": 0}],
)
def test_what_is_no_state_of_early_stopping_is_damage(state):
    stop = xgboost.callback.EarlyStopping(rounds=3)
    with pytest.raises(CheckpointDamagedError, match=r"stop\.json is no state of early stopping"):
        EarlyStoppingAdapter().prepare("stop", {"stop": stop}, {"state/stop": Saved({}, state)})


def test_one_that_was_never_trained_is_named(tmp_path):
    manager = CheckpointManager(tmp_path, {"booster": xgboost.Booster(TREES)})
    with pytest.raises(UsageError, match=r"booster: XGBoost cannot save .* 0 feature") as error:
        manager.save(0)
    assert "Stack trace" not in str(error.value)
    manager.close()


def test_a_look_before_the_first_round_leaves_the_parameters_alone(tmp_path, data):
    booster = xgboost.Booster(TREES, [data])
    manager = CheckpointManager(tmp_path, {"booster": booster})
    manager.step(0)  # prepares the first save, and would ask it for its size
    assert not manager.all_steps()
    for number in range(3):
        booster.update(data, number)
    manager.close()
    assert booster.save_raw() == trained(TREES, data, 3).save_raw()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("abXdef", r"'X' where the checkpoint has 'c' \(6 and 6 features\)"),
        ("abc", r"None where the checkpoint has 'd' \(3 and 6 features\)"),
    ],
)
def test_other_features_are_named_and_nothing_changes(tmp_path, data, box, names, words):
    data.feature_names = list("abcdef")
    save(tmp_path, {"first": box(1), "booster": trained(TREES, data, 2)})
    x = np.arange(4.0 * len(names)).reshape(4, -1)
    run = trained(TREES, xgboost.DMatrix(x, x[:, 0], feature_names=list(names)), 1)
    before = run.save_raw()
    first = box("untouched")
    with pytest.raises(EnvironmentFaultError, match=f"the feature {words}"):
        restore(tmp_path, {"first": first, "booster": run})
    assert first.value == "untouched"
    assert run.save_raw() == before


def test_parameters_that_would_drop_the_trees_are_named(tmp_path, data):
    save(tmp_path, {"booster": trained(TREES, data, 2)})
    with pytest.raises(EnvironmentFaultError, match="booster='gbtree'"):
        restore(tmp_path, {"booster": xgboost.Booster({"booster": "dart"})})


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({**KINDS["classes"], "num_class": 4}, "n_classes`: 4"),
        ({"objective": "binary:logistic"}, "for the logistic loss"),
    ],
)
def test_another_objective_is_told_in_xgboosts_words(tmp_path, data, params, words):
    save(tmp_path, {"booster": trained(KINDS["classes"], data, 2)})
    with pytest.raises(EnvironmentFaultError, match=words) as error:
        restore(tmp_path, {"booster": xgboost.Booster(params)})
    assert "2 rounds for multi:softprob" in str(error.value)
    assert "booster='gbtree'" not in str(error.value)


def test_a_file_that_this_xgboost_cannot_read_is_no_damage(tmp_path, data, monkeypatch):
    booster = trained(TREES, data, 2)
    monkeypatch.setattr(booster, "save_raw", lambda kind: bytearray(b"of the future"))
    save(tmp_path, {"booster": booster})
    with pytest.raises(EnvironmentFaultError, match=r"cannot read the model that XGBoost \d"):
        restore(tmp_path, {"booster": xgboost.Booster(TREES)})


def test_one_for_each_rank_is_refused(tmp_path):
    with pytest.raises(UsageError, match="'booster' is a Booster"):
        CheckpointManager(tmp_path, {"booster": PerRank(xgboost.Booster())})


def test_other_objects_of_xgboost_are_refused(tmp_path, data):
    with pytest.raises(UsageError, match="'data' is a DMatrix"):
        CheckpointManager(tmp_path, {"data": data})


@pytest.mark.parametrize("name", ["optim", "state", "ranks", "tensorflow"])
def test_folders_of_our_own_are_refused(tmp_path, data, name):
    manager = CheckpointManager(tmp_path, {name: trained(TREES, data, 1)})
    with pytest.raises(UsageError, match="name it otherwise"):
        manager.save(1)
    manager.close()


def test_a_flipped_bit_is_found_and_the_older_one_restored(tmp_path, data):
    save(tmp_path, {"booster": trained(TREES, data, 2)}, 1)
    folder = save(tmp_path, {"booster": trained(TREES, data, 3)}, 2)
    file = folder / "booster/model.ubj"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    booster = xgboost.Booster(TREES)
    assert restore(tmp_path, {"booster": booster}) == 1
    assert rounds_of(booster) == 2


def test_in_an_object_store(s3, data):
    booster = trained(TREES, data, 3)
    manager = CheckpointManager(s3, {"booster": booster})
    manager.save(3, blocking=True)
    manager.close()
    fresh = xgboost.Booster(TREES)
    assert restore(s3, {"booster": fresh}) == 3
    assert fresh.save_raw() == booster.save_raw()
