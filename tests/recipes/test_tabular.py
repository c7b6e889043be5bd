"""The tabular recipe: its tables, its flags, and what it trains, on one rank and on two."""

import gzip
import json
import os
import signal
import time

import pytest

from tests.distributed.pods import PYTHON, Cluster
from tests.distributed.test_environments import xgboostjob
from trainkit.errors import DataError, InputMissingError, UsageError
from trainkit.testing import free_port

xgboost = pytest.importorskip("xgboost", reason="needs xgboost-cpu: trainkit[xgboost-cpu]")
np = pytest.importorskip("numpy")
pytest.importorskip("sklearn", reason="needs scikit-learn: trainkit[tabular]")

from trainkit.recipes._tables import load_bundled, load_folder  # noqa: E402 - needs numpy
from trainkit.recipes.tabular import Config  # noqa: E402 - needs xgboost

RECIPE = [PYTHON, "-m", "trainkit.recipes.tabular"]


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.stop()


class Rank:
    """Of a context, what the tables ask for; each rank is as if the others had rows as well."""

    def __init__(self, rank=0, size=1):
        self.rank, self.size = rank, size

    def shard(self, items):
        return list(items)[self.rank :: self.size]

    def all_reduce(self, value, op):
        return value + self.size - 1


PARTS = ("train", "validation", "test")


@pytest.mark.parametrize(
    ("name", "rows", "columns"), [("digits", 1797, 64), ("breast_cancer", 569, 30)]
)
def test_a_part_has_the_same_rows_on_any_number_of_ranks(name, rows, columns):
    alone = load_bundled(Rank(), name, batch_rows=100)
    assert sum(alone.num_rows.values()) == rows
    assert alone.num_columns == columns
    for part in PARTS:
        assert len(alone.rows(part)[1]) == alone.num_rows[part]
        three = [load_bundled(Rank(n, 3), name, batch_rows=50).rows(part) for n in range(3)]
        together = np.concatenate([x for x, _ in three])
        assert sorted(map(tuple, together)) == sorted(map(tuple, alone.rows(part)[0]))
    assert 0.09 < alone.num_rows["test"] / rows < 0.11


def write_csv(path, columns, rows, header=True):
    text = "".join(",".join(map(str, row)) + "\n" for row in rows)
    text = (",".join(columns) + "\n" if header else "") + text
    packed = gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode()
    path.write_bytes(packed)


def test_csv_files_are_each_one_ranks(tmp_path):
    write_csv(tmp_path / "a.csv", "xyz", [[i, i + 0.5, i % 3] for i in range(20)])
    write_csv(tmp_path / "b.csv.gz", "xyz", [[i, "", i % 2] for i in range(10)])
    (tmp_path / "readme.txt").write_text("no table")
    table = load_folder(Rank(), str(tmp_path), None)
    assert (table.num_columns, table.num_classes) == (2, 3)
    assert table.num_rows == {"train": 24, "validation": 3, "test": 3}
    features, labels = table.rows("test")
    assert features[:2].tolist() == [[9, 9.5], [19, 19.5]]
    assert np.isnan(features[2, 1])
    assert labels.tolist() == [0, 1, 1]
    first, second, third = (load_folder(Rank(n, 3), str(tmp_path), "x") for n in range(3))
    assert (len(first.rows("train")[1]), len(second.rows("train")[1])) == (16, 8)
    assert third.rows("train")[0].shape == (0, 2)
    assert first.rows("train")[1].tolist()[:3] == [0, 1, 2]


@pytest.mark.parametrize(
    ("rows", "columns", "label", "words"),
    [
        ([[1, 2]], "xy", "z", r"--label z: .*a\.csv has the columns x, y"),
        ([[1, 0.5]], "xy", None, r"a\.csv: label 0\.5 in column y"),
        ([[1, -1]], "xy", None, r"label -1 in column y"),
        ([[1, "inf"]], "xy", None, r"label inf in column y"),
        ([], "", None, r"a\.csv: expected a line with the columns' names"),
        ([], "xy", None, r"no rows for train and validation and test, and 0"),
        ([[1, 0]] * 8, "xy", None, r"no rows for validation and test, and 8 to train on"),
        ([["one", 1]], "xy", None, r"a\.csv: .*one"),
        ([[1, 2, 3]], "xy", None, r"a\.csv: rows of 3 values under 2 columns"),
    ],
)
def test_a_table_that_cannot_be_meant_is_an_error(tmp_path, rows, columns, label, words):
    write_csv(tmp_path / "a.csv", columns, rows)
    with pytest.raises(DataError, match=words):
        load_folder(Rank(), str(tmp_path), label)


def test_files_with_other_columns_or_none_are_errors(tmp_path):
    with pytest.raises(InputMissingError, match=r"there is no \*\.csv"):
        load_folder(Rank(), str(tmp_path), None)
    write_csv(tmp_path / "a.csv", "xy", [[1, 0]])
    write_csv(tmp_path / "b.csv", "xz", [[1, 0]])
    with pytest.raises(DataError, match=r"b\.csv has the columns x, z"):
        load_folder(Rank(), str(tmp_path), None)


@pytest.mark.parametrize(
    "flags",
    [{"lr": 0.0}, {"subsample": 1.5}, {"max_bin": 1}, {"patience": -1}, {"rounds": 0}],
)
def test_flags_that_cannot_be_meant(flags):
    ((name, value),) = flags.items()
    with pytest.raises(UsageError, match=rf"--{name.replace('_', '-')} {value}: expected"):
        Config(**flags)


def done_line(pod):
    # its own last line; what is said of checkpoints goes to standard error
    lines = [line for line in pod.output.splitlines() if line.startswith("{")]
    found = json.loads(lines[-1])
    assert found["event"] == "done"
    return found


def start(cluster, pods, *flags):
    port = free_port()
    command = [*RECIPE, *flags]
    if pods == 1:
        return [cluster.start(command)]
    return [cluster.start(command, **xgboostjob(n, pods, port)) for n in range(pods)]


def test_two_ranks_reach_the_accuracy_of_one_and_stop_early(cluster):
    found = []
    for ranks in (1, 2):
        pod = start(cluster, ranks, "--output-dir", f"out-{ranks}")[0]
        cluster.end()
        cluster.pods.clear()
        found.append(done_line(pod))
        model = xgboost.Booster(model_file=cluster.folder / f"out-{ranks}" / "model.ubj")
        assert model.num_boosted_rounds() == found[-1]["rounds"] < found[-1]["step"] < 200
    assert found[0]["test_accuracy"] >= 0.97
    assert abs(found[0]["test_accuracy"] - found[1]["test_accuracy"]) < 0.006  # one row of 179


def test_external_memory_trains_the_same_trees(cluster):
    """Batches on disk, of which one rank has more than the other has."""
    models = {}
    for flags in ([], ["--external-memory", "--batch-rows", "400"]):
        pod = start(cluster, 2, "--rounds", "15", "--output-dir", "out", *flags)[0]
        cluster.end()
        cluster.pods.clear()
        assert done_line(pod)["step"] == 15
        assert ("on disk" in pod.output) is bool(flags)
        assert "WARNING" not in pod.output
        model = xgboost.Booster(model_file=cluster.folder / "out" / "model.ubj")
        models[bool(flags)] = model.get_dump()
    assert models[True] == models[False]
    assert not list((cluster.folder / "tmp").glob("trainkit-rows-*"))


@pytest.mark.parametrize(
    "flags",
    [pytest.param([], marks=pytest.mark.slow), ["--external-memory"]],
    ids=["memory", "external"],
)
def test_csv_files_train_on_more_ranks_than_there_are_files(cluster, flags):
    folder = cluster.folder / "rows"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in "ab":
        x = rng.integers(0, 20, size=(300, 4))
        write_csv(folder / f"{name}.csv", "abcdy", [[*row, int(row[0] > row[1])] for row in x])
    pod = start(cluster, 3, "--data-dir", "rows", "--rounds", "30", *flags)[0]
    cluster.end()
    assert done_line(pod)["test_accuracy"] > 0.93
    assert "2 files of rows" in pod.output


def test_a_finished_run_has_nothing_left(cluster):
    for again in (False, True):
        pod = start(cluster, 1, "--rounds", "200", "--checkpoint-dir", "ckpt")[0]
        cluster.end()
        cluster.pods.clear()
        done = done_line(pod)
        assert (done["steps_run"] == 0) is again
        assert ("nothing left: step" in pod.output) is again
        if not again:
            first = done
    assert done == {**first, "steps_run": 0}


def test_sigterm_saves_and_the_run_goes_on_to_the_same_model(cluster):
    flags = ["--dataset", "breast_cancer", "--rounds", "400", "--patience", "0", "--output-dir"]
    start(cluster, 1, *flags, "unbroken")
    cluster.end()
    cluster.pods.clear()
    pod = start(cluster, 1, *flags, "broken", "--checkpoint-dir", "ckpt")[0]
    while "step 1/400" not in (line := pod.process.stdout.readline()):
        assert line, "the pod ended before its first round"
    os.kill(pod.process.pid, signal.SIGTERM)
    assert pod.end(time.monotonic() + 60) == 143
    cluster.pods.clear()
    pod = start(cluster, 1, *flags, "broken", "--checkpoint-dir", "ckpt")[0]
    cluster.end()
    assert 0 < done_line(pod)["steps_run"] < 400
    models = [(cluster.folder / name / "model.ubj").read_bytes() for name in ("unbroken", "broken")]
    assert models[0] == models[1]


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--rounds", "0"], 2, "--rounds 0: expected 1 or more"),
        (["--data-dir", "nowhere"], 66, "--data-dir nowhere"),
        (["--strategy", "ddp"], 78, "under strategy 'ddp'"),
    ],
)
def test_what_is_wrong_is_one_message(cluster, flags, code, words):
    pod = cluster.start([*RECIPE, *flags])
    cluster.end(codes=[code])
    assert words in pod.output
    assert "Traceback" not in pod.output
