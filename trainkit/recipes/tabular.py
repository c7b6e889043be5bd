"""Boosted trees on a table, from one process to a job of many pods, with one and the same file.

    python -m trainkit.recipes.tabular                                     # one rank
    trainkit launch --nproc-per-node 2 -m trainkit.recipes.tabular         # two ranks on this host
    mpirun -n 2 python -m trainkit.recipes.tabular                         # the same under MPI
    kubectl apply -f recipes/tabular/xgboostjob.yaml                       # pods of an operator

Without --data-dir it trains on a table that comes with scikit-learn, with no network. Eight
tenths of the rows are for training, one says when to stop, and one is for the test.
"""

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xgboost

import trainkit
from trainkit.errors import UsageError
from trainkit.recipes._config import JobConfig, run_recipe
from trainkit.recipes._lines import finish, say
from trainkit.recipes._tables import Part, Table, load_bundled, load_folder

__all__ = ["Config", "main"]


@dataclass(frozen=True, kw_only=True)
class Config(JobConfig):
    """Flags of the tabular recipe."""

    rounds: int = 200
    """Rounds of boosting at most, over all attempts together; a round is a step."""
    patience: int = 20
    """Rounds without a better loss on the validation rows after which to stop; 0: never."""
    lr: float = 0.3
    """Learning rate: the share of each tree that counts (XGBoost's eta)."""
    max_depth: int = 3
    """Levels of a tree."""
    max_bin: int = 256
    """Bins of each column's histogram."""
    subsample: float = 1.0
    """Share of the rows that a round looks at, 0 … 1."""
    dataset: Literal["digits", "breast_cancer"] = "digits"
    """Table of scikit-learn's to train on where there is no --data-dir."""
    data_dir: str | None = None
    """Folder of CSV files with a header; each file is read by one rank."""
    label: str | None = None
    """Column with the class, 0, 1, 2 …; unset: the last."""
    external_memory: bool = False
    """Keep the rows on disk, and read them batch by batch in each round: for tables that do not
    fit into memory."""
    batch_rows: int = 512
    """Rows a batch of a bundled table under --external-memory; of CSV files each is a batch."""
    seed: int = 0
    """Seed of what XGBoost draws, where it does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("rounds", "max_depth", "batch_rows")
        if self.max_bin < 2:
            raise UsageError(f"--max-bin {self.max_bin}: expected 2 or more")
        if self.patience < 0:
            raise UsageError(f"--patience {self.patience}: expected 0 or more")
        for name in ("lr", "subsample"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"--{name} {getattr(self, name)}: expected above 0, up to 1")


class Batches(xgboost.DataIter):
    """A part of the table as XGBoost asks for it: batch by batch, as often as it likes."""

    def __init__(self, table: Table, part: Part, folder: str) -> None:
        """Have XGBoost keep what it makes of the batches in ``folder``."""
        super().__init__(cache_prefix=str(Path(folder) / part))
        self._table = table
        self._part: Part = part
        self._left = table.batches(part)

    def next(self, input_data: Any) -> bool:
        """Hand over the next batch; False after the last."""
        batch = next(self._left, None)
        if batch is None:
            return False
        input_data(data=batch[0], label=batch[1])
        return True

    def reset(self) -> None:
        """Begin again."""
        self._left = self._table.batches(self._part)


class Shown(xgboost.callback.TrainingCallback):
    """Tells people how it goes."""

    def __init__(self, ctx: trainkit.Context, rounds: int) -> None:
        super().__init__()
        self._ctx = ctx
        self._rounds = rounds

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """See ``TrainingCallback``."""
        self._ctx.log(model.num_boosted_rounds(), steps=self._rounds, **_newest(evals_log))
        return False


def main(ctx: trainkit.Context, config: Config) -> float:
    """Train and test; returns the test accuracy, the same on all ranks."""
    table = _load(ctx, config)
    params = _params(ctx, config, table)
    booster, log = xgboost.Booster(params), dict[str, dict[str, list[float]]]()
    state: dict[str, Any] = {"booster": booster, "log": log}
    callbacks: list[Any] = []
    if config.patience:
        stopping = xgboost.callback.EarlyStopping(rounds=config.patience, save_best=True)
        state["stopping"] = stopping
        callbacks.append(stopping)
    checkpoints = ctx.checkpoints(save=config.checkpoint_every, **state)
    saving = ctx.save_callback(checkpoints, log=log)
    # A round is shown once it has been saved, where it was to be; what keeps state comes before.
    callbacks += [saving, Shown(ctx, config.rounds)]
    first = checkpoints.restore_latest() or 0
    left = saving.rounds_left(config.rounds)
    if not left:
        say(ctx, f"nothing left: step {first} of {first}")
    else:
        say(ctx, _introduction(ctx, config, table, left))
    with ExitStack() as stack:
        train, validation = _matrices(table, config, stack)
        model = xgboost.train(
            params,
            train,
            left,
            xgb_model=saving.model,
            evals=[(train, "train"), (validation, "validation")],
            callbacks=callbacks,
            verbose_eval=False,
        )
        del train, validation  # with the files they keep, before the folder goes
    accuracy = _accuracy(ctx, model, table)
    if config.output_dir is not None and ctx.rank == 0:
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        model.save_model(Path(config.output_dir) / "model.ubj")
    done = len(log["validation"][_metric(table)])
    say(ctx, f"test accuracy {accuracy:.2%} on {table.num_rows['test']:,} rows ({table.source})")
    finish(
        ctx,
        step=done,
        steps_run=done - first,
        test_accuracy=accuracy,
        rounds=model.num_boosted_rounds(),
    )
    return accuracy


def _load(ctx: trainkit.Context, config: Config) -> Table:
    if config.data_dir is not None:
        return load_folder(ctx, config.data_dir, config.label)
    return load_bundled(ctx, config.dataset, batch_rows=config.batch_rows)


def _params(ctx: trainkit.Context, config: Config, table: Table) -> dict[str, Any]:
    params = {
        "device": ctx.device,
        "tree_method": "hist",
        "eta": config.lr,
        "max_depth": config.max_depth,
        "max_bin": config.max_bin,
        "subsample": config.subsample,
        "seed": config.seed,
        "eval_metric": _metric(table),
    }
    if table.num_classes > 2:
        return {**params, "objective": "multi:softprob", "num_class": table.num_classes}
    return {**params, "objective": "binary:logistic"}


def _metric(table: Table) -> str:
    return "mlogloss" if table.num_classes > 2 else "logloss"


def _matrices(
    table: Table, config: Config, stack: ExitStack
) -> tuple[xgboost.DMatrix, xgboost.DMatrix]:
    """Rows for training and validation: every rank makes both, since XGBoost has all of them
    agree on the bins."""
    if not config.external_memory:
        features, labels = table.rows("train")
        train = xgboost.QuantileDMatrix(features, labels, max_bin=config.max_bin)
        features, labels = table.rows("validation")
        return train, xgboost.QuantileDMatrix(features, labels, ref=train, max_bin=config.max_bin)
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="trainkit-rows-"))
    paged = xgboost.ExtMemQuantileDMatrix(Batches(table, "train", folder), max_bin=config.max_bin)
    validation = xgboost.ExtMemQuantileDMatrix(
        Batches(table, "validation", folder), ref=paged, max_bin=config.max_bin
    )
    return paged, validation


def _accuracy(ctx: trainkit.Context, model: xgboost.Booster, table: Table) -> float:
    """Share of the test rows that ``model`` tells right; each counts once, on any number of
    ranks."""
    right = 0
    for features, labels in table.batches("test"):
        if len(labels):
            scores = np.asarray(model.inplace_predict(features))
            told = scores.argmax(axis=1) if scores.ndim == 2 else scores > 0.5
            right += int((told == labels).sum())
    return int(ctx.all_reduce(right, "sum")) / max(1, table.num_rows["test"])


def _introduction(ctx: trainkit.Context, config: Config, table: Table, left: int) -> str:
    where = "on disk" if config.external_memory else "in memory"
    return (
        f"{table.num_rows['train']:,} rows of {table.num_columns} columns ({table.source}) "
        f"{where}, on {ctx.world_size} rank(s): {left} rounds at most, on {ctx.device}"
    )


def _newest(evals_log: Mapping[str, Mapping[str, list[Any]]]) -> dict[str, float]:
    return {
        f"{data}_{metric}": float(values[-1])
        for data, scores in evals_log.items()
        for metric, values in scores.items()
    }


if __name__ == "__main__":
    run_recipe(main, Config, __doc__)
