"""Checkpoints while ``xgboost.train`` has the loop: a callback that saves after rounds.

booster, log = xgboost.Booster(params), {}
stopping = xgboost.callback.EarlyStopping(rounds=10)
manager = CheckpointManager(url, {"booster": booster, "log": log, "stopping": stopping})
manager.restore_latest()
saving = SaveCheckpoints(manager, log=log)
booster = xgboost.train(
    params, data, saving.rounds_left(500), xgb_model=saving.model,
    evals=[(data, "train")], callbacks=[stopping, saving],
)
"""

from collections.abc import Iterator, Mapping
from typing import Any

import xgboost

from trainkit.checkpoint.adapters.xgboost import learner_config, rounds_of
from trainkit.checkpoint.manager import CheckpointManager
from trainkit.errors import UsageError

__all__ = ["SaveCheckpoints"]

EvalLog = dict[str, dict[str, list[float]]]

_SHARES = ("subsample", "colsample_bytree", "colsample_bylevel", "colsample_bynode")
_CHANCES = ("rate_drop", "skip_drop", "one_drop")
_DRAWING_SELECTORS = ("1", "shuffle", "2", "random")
_APART = 1_000_003
"""Between the seeds of two rounds, so that those of runs with neighbouring seeds do not meet."""


class SaveCheckpoints(xgboost.callback.TrainingCallback):
    """Calls ``manager.step`` after each round: its policy saves, and a notice to stop ends it.

    ``xgboost.train`` trains a copy of the booster that it is given; this puts the copy into the
    manager's state. Its place is last among the callbacks, so that what the others do in a round
    is saved with it.

    Where XGBoost draws random numbers (``subsample``, ``colsample_*``, dropout of DART), each
    save also makes it go on from what was saved, with a seed of that round: a restart then
    trains the very same trees. Its own generators have no state that could be saved.
    """

    def __init__(
        self, manager: CheckpointManager, *, entry: str | None = None, log: EvalLog | None = None
    ) -> None:
        """Prepare, before or after the manager has restored.

        Args:
            manager: with a booster in its state.
            entry: name of the booster in it, where there are several.
            log: an entry of the state, to be filled with the scores of all rounds by data set
                and metric, as ``evals_result`` has them. ``evals_result`` itself begins anew
                with each start.

        Raises:
            UsageError: there is no booster, or several; or ``log`` is not in the state.
        """
        super().__init__()
        state = manager.state
        boosters = [name for name, value in state.items() if isinstance(value, xgboost.Booster)]
        if entry is None and len(boosters) == 1:
            (entry,) = boosters
        if entry not in boosters:
            asked = "expected one, or entry=" if entry is None else f"none is {entry!r}"
            raise UsageError(f"boosters in the state: {', '.join(boosters) or 'none'}; {asked}")
        if log is not None and not any(value is log for value in state.values()):
            raise UsageError("log= is no entry of the manager's state, so it would not be saved")
        self._manager = manager
        self._entry = entry
        self._log = log
        self._evals: Mapping[str, Mapping[str, list[Any]]] = {}
        self._noted = 0
        self._seed = 0
        self._stops: list[tuple[xgboost.callback.EarlyStopping, int]] = []

    @property
    def model(self) -> Any:
        """What to give ``xgboost.train`` as ``xgb_model``: None before the first round."""
        booster = self._manager.state[self._entry]
        return booster if rounds_of(booster) else None

    def rounds_left(self, num_rounds: int) -> int:
        """What to give ``xgboost.train`` as ``num_boost_round``.

        Args:
            num_rounds: of the whole run, over all its starts.

        Returns:
            Rounds that are still to be done; 0 where early stopping, if that is in the state,
            has ended the run already.
        """
        if any(stop.current_rounds >= stop.rounds for stop in self._early_stopping()):
            return 0
        return max(0, num_rounds - rounds_of(self._manager.state[self._entry]))

    def before_training(self, model: Any) -> Any:
        """See ``TrainingCallback``.

        Raises:
            UsageError: cross-validation, which has no booster of its own.
        """
        if not isinstance(model, xgboost.Booster):
            raise UsageError("SaveCheckpoints is for xgboost.train; cross-validation has no state")
        self._manager.replace(self._entry, model)
        # It counts rounds from this start of the run, so that a restart would draw others.
        model.set_param({"seed_per_iteration": False})
        self._evals, self._noted = {}, 0
        rounds = rounds_of(model)
        self._stops = [(stop, _length(stop) - rounds) for stop in self._early_stopping()]
        if rounds:
            self._seed = _seed(model)
            if _draws(model):
                self._go_on_from_saved(model, rounds)
        return model

    def before_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """See ``TrainingCallback``: a round that ends training does not come to the end of it."""
        self._evals = evals_log  # filled further by XGBoost, also when early stopping ends it
        return False

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """See ``TrainingCallback``.

        Raises:
            UsageError: early stopping comes after this one.
            Preempted: the job is to stop; the message says what is saved.
            OSError: a save failed.
        """
        rounds = rounds_of(model)
        # A round leaves nothing of Python in the caches, so what is not needed is left out.
        if self._stops and any(_length(stop) - ahead != rounds for stop, ahead in self._stops):
            raise UsageError(
                "SaveCheckpoints has to come after EarlyStopping in callbacks=, which has to be "
                "the one that is in the state; give it there and not as early_stopping_rounds="
            )
        if rounds == 1:
            self._seed = _seed(model)
        metrics = None
        if self._evals:
            self._note()
            metrics = self._metrics()
        if self._manager.step(rounds, metrics) and _draws(model):
            self._go_on_from_saved(model, rounds)
        return False

    def after_training(self, model: Any) -> Any:
        """See ``TrainingCallback``; what is not saved yet, is now.

        A run that early stopping ends is over, also for the next start.
        """
        trained = self._manager.state[self._entry]  # without what save_best cuts off
        rounds = rounds_of(trained)
        if rounds:
            self._note()
            self._manager.step(rounds, self._metrics())
            self._manager.save_unsaved()
            trained.set_param({"seed": self._seed})
        return model

    def _early_stopping(self) -> Iterator[Any]:
        for value in self._manager.state.values():
            if isinstance(value, xgboost.callback.EarlyStopping):
                yield value

    def _note(self) -> None:
        """Take over the scores of rounds that were not noted yet."""
        done = max((len(v) for scores in self._evals.values() for v in scores.values()), default=0)
        if self._log is not None:
            for data, scores in self._evals.items():
                for metric, values in scores.items():
                    kept = self._log.setdefault(data, {}).setdefault(metric, [])
                    kept.extend(float(value) for value in values[self._noted :])
        self._noted = done

    def _metrics(self) -> dict[str, float]:
        return {
            f"{data}-{metric}": float(values[-1])
            for data, scores in self._evals.items()
            for metric, values in scores.items()
            if values
        }

    def _go_on_from_saved(self, model: Any, rounds: int) -> None:
        """Do now what a restart would: the generators inside the updaters begin anew."""
        if not _is_linear(model):
            model.load_model(model.save_raw("ubj"))
        model.set_param({"seed": self._seed_after(rounds)})

    def _seed_after(self, rounds: int) -> int:
        return (self._seed + rounds * _APART) & 0x7FFFFFFF


def _length(stop: Any) -> int:
    """Rounds that early stopping has seen."""
    return max(
        (len(v) for scores in stop.stopping_history.values() for v in scores.values()), default=0
    )


def _seed(model: Any) -> int:
    return int(learner_config(model)["generic_param"]["seed"])


def _is_linear(model: Any) -> bool:
    return bool(learner_config(model)["gradient_booster"]["name"] == "gblinear")


def _draws(model: Any) -> bool:
    """Whether training takes random numbers."""
    return any(
        (name in _SHARES and float(value) < 1)
        or (name in _CHANCES and float(value) > 0)
        or (name == "feature_selector" and value in _DRAWING_SELECTORS)
        for name, value in _leaves(learner_config(model)["gradient_booster"])
    )


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The settings in a configuration, by their own names."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, name)
    else:
        yield name, value
