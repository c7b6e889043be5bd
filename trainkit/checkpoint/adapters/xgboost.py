"""XGBoost's boosters, as the file that XGBoost itself writes, and the state of early stopping."""

import copy
import itertools
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import xgboost

from trainkit.checkpoint.adapters.base import Apply, Document, RawFile, Saved, StateAdapter
from trainkit.checkpoint.format.layout import RESERVED
from trainkit.errors import CheckpointDamagedError, EnvironmentFaultError, UsageError

__all__ = [
    "BoosterAdapter",
    "EarlyStoppingAdapter",
    "adapter_for",
    "learner_config",
    "rounds_of",
]


def adapter_for(value: Any) -> StateAdapter | None:
    """The adapter for a booster or early stopping; None for any other object of XGBoost."""
    if isinstance(value, xgboost.Booster):
        return BoosterAdapter()
    if isinstance(value, xgboost.callback.EarlyStopping):
        return EarlyStoppingAdapter()
    return None


def rounds_of(booster: Any) -> int:
    """Rounds that ``booster`` has been boosted; 0 for one that has never seen data.

    Such a one raises when it is asked nearly anything, and forgets its parameters by that: it
    is good for nothing but to be trained by ``xgboost.train``, which makes another one.
    """
    try:
        return int(booster.num_boosted_rounds())
    except xgboost.core.XGBoostError:
        return 0


class BoosterAdapter:
    """Saves a booster as ``<entry>/model.ubj``, alone in its folder: what servers of models expect.

    What the file also tells, for people and for ``trainkit checkpoint``, is in
    ``state/<entry>.json``.
    """

    kind: ClassVar[str] = "booster"

    def capture(self, name: str, state: Mapping[str, Any]) -> list[Document]:
        """See ``StateAdapter.capture``."""
        if name in RESERVED:
            raise UsageError(
                f"a booster cannot be the checkpoint entry {name!r}: name it otherwise"
            )
        booster = state[name]
        try:
            model = booster.save_raw("ubj")
            facts = _facts(booster)
        except xgboost.core.XGBoostError as error:
            raise UsageError(
                f"{name}: XGBoost cannot save the booster: {_first_line(error)}. One that has not "
                f"been trained for a round yet has nothing to save."
            ) from None
        raw = RawFile.of_bytes(model)
        return [
            Document(f"{name}/model.ubj", None, raw=raw),
            Document.of(f"state/{name}", name, facts),
        ]

    def sketch(self, name: str, state: Mapping[str, Any]) -> list[Document]:
        """See ``SketchingAdapter.sketch``: none, since it may not have been trained yet."""
        return []

    def has_begun(self, value: Any) -> bool:
        """See ``LateAdapter.has_begun``."""
        return rounds_of(value) > 0

    def prepare(self, name: str, state: Mapping[str, Any], saved: Mapping[str, Saved]) -> Apply:
        """See ``StateAdapter.prepare``."""
        model = bytearray(saved[f"{name}/model.ubj"].file())
        facts = saved[f"state/{name}"].value()
        if not isinstance(facts, dict):
            raise CheckpointDamagedError(f"state/{name}.json does not say which booster it is")
        booster, probe = state[name], xgboost.Booster()
        try:
            probe.load_model(model)
            rounds = rounds_of(probe)
        except xgboost.core.XGBoostError as error:
            raise EnvironmentFaultError(
                f"{name}: XGBoost {xgboost.__version__} cannot read the model that "
                f"{facts.get('written_by')} saved: {_first_line(error)}. Use that version, or a "
                f"newer one."
            ) from None
        if rounds != facts.get("rounds"):
            raise CheckpointDamagedError(
                f"{name}/model.ubj has {rounds} rounds, and state/{name}.json says "
                f"{facts.get('rounds')}"
            )
        _compare(name, booster, probe)
        objective = learner_config(probe)["objective"]["name"]

        def apply() -> None:
            booster.load_model(model)
            # A parameter of the run that asks for another kind of booster drops all trees, and
            # one for another number of outputs leaves none that can be used.
            if rounds_of(booster) != rounds:
                raise EnvironmentFaultError(
                    f"{name}: the checkpoint holds a {facts['booster']} booster of {rounds} "
                    f"rounds for {objective}, and XGBoost cannot go on from it with the run's own "
                    f"parameters: {_why_unusable(booster, facts)}. Give those that it was "
                    f"trained with, or start with another checkpoint folder."
                )

        return apply


class EarlyStoppingAdapter:
    """Saves how long the score has not improved: XGBoost itself begins to count anew."""

    kind: ClassVar[str] = "early_stopping"

    _FIELDS = ("stopping_history", "best_scores", "current_rounds")

    def capture(self, name: str, state: Mapping[str, Any]) -> list[Document]:
        """See ``StateAdapter.capture``."""
        value = {field: _plain(getattr(state[name], field)) for field in self._FIELDS}
        return [Document.of(f"state/{name}", name, value)]

    def prepare(self, name: str, state: Mapping[str, Any], saved: Mapping[str, Saved]) -> Apply:
        """See ``StateAdapter.prepare``."""
        value = saved[f"state/{name}"].value()
        kinds = (dict, dict, int)
        if not isinstance(value, dict) or not all(
            type(value.get(field)) is kind for field, kind in zip(self._FIELDS, kinds, strict=True)
        ):
            raise CheckpointDamagedError(f"state/{name}.json is no state of early stopping")
        callback = state[name]

        def apply() -> None:
            for field in self._FIELDS:
                setattr(callback, field, copy.deepcopy(value[field]))

        return apply


def _facts(booster: Any) -> dict[str, Any]:
    return {
        "rounds": rounds_of(booster),
        "booster": _kind_of(booster),
        "num_features": int(booster.num_features()),
        "attributes": dict(booster.attributes()),
        "written_by": f"XGBoost {xgboost.__version__}",
    }


def _kind_of(booster: Any) -> str:
    return str(learner_config(booster)["gradient_booster"]["name"])


def learner_config(booster: Any) -> Any:
    """What XGBoost makes of the parameters of ``booster``."""
    return json.loads(booster.save_config())["learner"]


def _why_unusable(booster: Any, facts: Mapping[str, Any]) -> str:
    """What XGBoost says of a booster that has lost the rounds of ``facts`` to its parameters."""
    try:
        booster.num_boosted_rounds()
    except xgboost.core.XGBoostError as error:
        return _first_line(error)
    return f"they ask for another kind than booster={facts['booster']!r}"


def _compare(name: str, booster: Any, saved: Any) -> None:
    """Refuse a model of other features than the run's booster names.

    Only the names can be asked for: by anything else one that is not trained loses its
    parameters. Data with another number of features XGBoost refuses itself.
    """
    ours, theirs = booster.feature_names, saved.feature_names
    if ours is None or theirs is None or ours == theirs:
        return
    pairs = itertools.zip_longest(ours, theirs)
    one, other = next(pair for pair in pairs if pair[0] != pair[1])
    raise EnvironmentFaultError(
        f"{name}: the run's booster has the feature {one!r} where the checkpoint has {other!r} "
        f"({len(ours)} and {len(theirs)} features). Start with another checkpoint folder, or the "
        f"data that was trained on."
    )


def _plain(value: Any) -> Any:
    """``value`` without the types of numpy and the ordered dictionaries that callbacks use."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return float(value) if isinstance(value, float) else value


def _first_line(error: BaseException) -> str:
    """XGBoost's message without its C++ stack."""
    return str(error).strip().partition("\n")[0]
