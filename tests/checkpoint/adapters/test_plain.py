"""Entries of no framework are given back in place."""

import random
from collections import OrderedDict

import numpy as np
import pytest

from trainkit import PerRank, Progress
from trainkit.checkpoint import CheckpointManager
from trainkit.errors import EnvironmentFaultError, UsageError


def save_and_restore(folder, saved, restored):
    CheckpointManager(folder, saved).save(7)
    assert CheckpointManager(folder, restored).restore_latest() == 7
    return restored


def test_numpy_and_json_state(tmp_path):
    weights = np.zeros((2, 3), np.float32)
    notes, table = [], {}
    save_and_restore(
        tmp_path,
        {
            "weights": np.arange(6, dtype=np.float32).reshape(2, 3),
            "notes": ["a", (1, 2)],
            "table": {3: "three", "moments": np.ones(2)},
            "progress": Progress(2, 7),
        },
        restored := {"weights": weights, "notes": notes, "table": table, "progress": Progress()},
    )
    assert np.array_equal(weights, [[0, 1, 2], [3, 4, 5]])  # the same array, filled
    assert notes == ["a", (1, 2)]
    assert table[3] == "three"
    assert np.array_equal(table["moments"], [1, 1])
    assert restored["progress"] == Progress(2, 7)


def test_a_dict_loses_what_was_not_saved(tmp_path):
    table = {"old": 1}
    save_and_restore(tmp_path, {"table": {"new": 2}}, {"table": table})
    assert table == {"new": 2}


def test_generators_go_on_where_they_were(tmp_path):
    manager = CheckpointManager(tmp_path, {})
    random.random()
    np.random.rand()
    manager.save(1, blocking=True)
    expected = (random.random(), np.random.rand())
    random.seed(99)
    np.random.seed(99)
    assert CheckpointManager(tmp_path, {}).restore_latest() == 1
    assert (random.random(), np.random.rand()) == expected


def test_saving_draws_no_random_numbers(tmp_path):
    random.seed(1)
    np.random.seed(1)
    expected = (random.random(), np.random.rand())
    random.seed(1)
    np.random.seed(1)
    CheckpointManager(tmp_path, {}).save(1)
    assert (random.random(), np.random.rand()) == expected


def test_generators_are_given_back_last(tmp_path):
    class Loader:
        def state_dict(self):
            return {}

        def load_state_dict(self, state_dict):
            random.random()

    CheckpointManager(tmp_path, {"loader": Loader()}).save(1)
    expected = random.random()
    assert CheckpointManager(tmp_path, {"loader": Loader()}).restore_latest() == 1
    assert random.random() == expected


@pytest.mark.parametrize("value", [3, "text", (1, 2), None, np.float32(1), object(), len])
@pytest.mark.parametrize("wrap", [lambda x: x, PerRank])
def test_what_cannot_be_given_back_is_refused_at_once(tmp_path, value, wrap):
    with pytest.raises(UsageError, match="'thing'"):
        CheckpointManager(tmp_path, {"thing": wrap(value)})


def test_entries_that_share_a_file_are_refused(tmp_path):
    with pytest.raises(UsageError, match="only in case"):
        CheckpointManager(tmp_path, {"Model": {}, "model": {}})


@pytest.mark.parametrize(
    ("saved", "run", "words"),
    [
        (
            np.zeros(3),
            np.zeros(4),
            r"expects an array of shape \(4,\) .* holds an array of shape \(3,\)",
        ),
        (np.zeros(3), np.zeros(3, np.float32), "expects .* type float32.* holds .* type float64"),
        ([1], {}, "expects a dict.*holds a list"),
        ({}, [1], "expects a list.*holds a dict"),
        ([1], np.zeros(3), "expects an array .* holds a list"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_changes(tmp_path, box, saved, run, words):
    CheckpointManager(tmp_path, {"first": box(1), "thing": saved}).save(1)
    first = box("untouched")
    with pytest.raises(EnvironmentFaultError, match=f"thing: the run {words}"):
        CheckpointManager(tmp_path, {"first": first, "thing": run}).restore_latest()
    assert first.value == "untouched"


def test_an_entry_that_is_missing_is_named(tmp_path, box):
    CheckpointManager(tmp_path, {"a": box(1)}).save(1)
    with pytest.raises(EnvironmentFaultError, match=r"b: the run expects .* no such entry .*has a"):
        CheckpointManager(tmp_path, {"a": box(), "b": box()}).restore_latest()


def test_an_entry_that_nobody_asks_for_is_a_warning(tmp_path, box, caplog):
    CheckpointManager(tmp_path, {"a": box(1), "b": box(2)}).save(1)
    CheckpointManager(tmp_path, {"a": (a := box())}).restore_latest()
    assert a.value == 1
    assert "not restored, since this run does not name them: b" in caplog.text


def test_per_rank_and_shared_are_not_mistaken(tmp_path, box):
    CheckpointManager(tmp_path, {"a": box(1)}).save(1)
    with pytest.raises(EnvironmentFaultError, match="expects a per_rank"):
        CheckpointManager(tmp_path, {"a": PerRank(box())}).restore_latest()


def test_ordered_dicts_are_filled_too(tmp_path):
    target = OrderedDict(x=0)
    save_and_restore(tmp_path, {"d": OrderedDict(b=1, a=2)}, {"d": target})
    assert list(target.items()) == [("b", 1), ("a", 2)]
