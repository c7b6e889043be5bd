"""torch's optimizers, with their state under the names of parameters."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from trainkit.checkpoint.adapters.base import Apply, Document, Saved
from trainkit.checkpoint.adapters.torch.modules import canonical_names
from trainkit.checkpoint.adapters.torch.sharded import (
    described,
    gathered,
    give_back_parts,
    is_sharded,
    like,
    own_part,
    stand_ins,
)
from trainkit.checkpoint.format.layout import sharded_path
from trainkit.errors import CheckpointDamagedError, EnvironmentFaultError

__all__ = ["OptimizerAdapter"]

_HINT = (
    "Restore with the optimizer and model that were saved, or start with another checkpoint "
    "folder; it has changed nothing."
)


class OptimizerAdapter:
    """Saves an optimizer keyed by ``<entry of the module>.<parameter>``.

    torch numbers parameters by their order, so that a state could silently go to other
    parameters after the order changed. Where a parameter belongs to no module of the state,
    the whole optimizer keeps torch's numbers.
    """

    kind: ClassVar[str] = "optimizer"

    def capture(self, name: str, state: Mapping[str, Any]) -> list[Document]:
        """See ``StateAdapter.capture``."""
        own = state[name].state_dict()
        names = _parameter_names(state[name], state)
        value = {**own, "keyed_by": "index"}
        if names is not None:
            value["keyed_by"] = "name"
            value["state"] = {names[i]: values for i, values in own["state"].items()}
            value["param_groups"] = [
                {**group, "params": [names[i] for i in group["params"]]}
                for group in own["param_groups"]
            ]
        sharded = {}
        kept: dict[Any, Any] = {}
        for parameter, values in value["state"].items():
            kept[parameter] = {k: v for k, v in values.items() if not is_sharded(v)}
            for key, tensor in values.items():
                if is_sharded(tensor):
                    label = json.dumps([parameter, key])
                    sharded[label] = described(tensor, f"{name}.state[{parameter}].{key}")
        documents = [Document.of(f"optim/{name}", name, {**value, "state": kept})]
        if sharded:
            documents.append(Document(sharded_path(f"optim/{name}"), None, sharded))
        return documents

    def own_parts(self, name: str, state: Mapping[str, Any]) -> dict[str, Any]:
        """See ``ShardedAdapter.own_parts``."""
        names = _parameter_names(state[name], state)
        parts = {}
        for number, values in state[name].state_dict()["state"].items():
            for key, tensor in values.items():
                part = own_part(tensor) if is_sharded(tensor) else None
                if part is not None:
                    parts[json.dumps([names[number] if names else number, key])] = part
        return parts

    def prepare(self, name: str, state: Mapping[str, Any], saved: Mapping[str, Saved]) -> Apply:
        """See ``StateAdapter.prepare``."""
        optimizer = state[name]
        value = saved[f"optim/{name}"].value()
        sharded = saved.get(sharded_path(f"optim/{name}"))
        for label, stand_in in stand_ins(name, sharded).items():
            _put(name, value["state"], label, stand_in)
        names = _parameter_names(optimizer, state)
        keyed_by = value.pop("keyed_by")
        if (keyed_by == "name") is not (names is not None):
            raise EnvironmentFaultError(
                f"{name}: its state was saved by {keyed_by} of parameters, and this run would "
                f"save it otherwise: the state of one run holds the optimizer's module and the "
                f"other does not. {_HINT}"
            )
        own = optimizer.state_dict()["param_groups"]
        labels: list[Any] = (
            [*names] if names is not None else [*range(sum(len(group["params"]) for group in own))]
        )
        _compare_groups(name, own, value["param_groups"], labels)
        if names is not None:
            _renumber(value, own, names)
        _compare_shapes(name, optimizer, value["state"], labels)
        of_moments = {
            json.dumps([labels[number], key]): (number, key, parameter)
            for number, parameter in enumerate(_parameters(optimizer))
            for key, moment in value["state"].get(number, {}).items()
            if isinstance(moment, torch.Tensor)
        }
        # Moments are cut as their parameter is.
        read = gathered(sharded, {label: target for label, (_, _, target) in of_moments.items()})
        for label, (number, key, target) in of_moments.items():
            moments = value["state"][number]
            moments[key] = like(read.get(label, moments[key]), target)
        return lambda: optimizer.load_state_dict(value)


def _put(name: str, state: dict[Any, dict[str, Any]], label: str, tensor: torch.Tensor) -> None:
    """Put a tensor where ``label``, a parameter and a key as JSON, says."""
    try:
        parameter, key = json.loads(label)
        state[parameter][key] = tensor
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointDamagedError(
            f"{name}: {label} is sharded, and is no place in its state: {error!r}"
        ) from None


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """In the order in which torch numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _parameter_names(
    optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> list[str] | None:
    """Names of all parameters in torch's order; None if one belongs to no module."""
    names: dict[int, str] = {}
    for entry, module in state.items():
        if isinstance(module, torch.nn.Module):
            give_back_parts(module)
            canonical = canonical_names(module)
            for own, parameter in module.named_parameters():
                names.setdefault(id(parameter), f"{entry}.{canonical(own)}")
    found = [names.get(id(parameter)) for parameter in _parameters(optimizer)]
    named = [name for name in found if name is not None]
    # Two modules that share a name cannot be told apart; nor can one parameter given twice.
    return named if len(set(named)) == len(found) else None


def _compare_groups(
    name: str, own: list[dict[str, Any]], saved: list[dict[str, Any]], labels: list[Any]
) -> None:
    if len(own) != len(saved):
        raise EnvironmentFaultError(
            f"{name}: the run has {len(own)} parameter group(s), the checkpoint {len(saved)}. "
            f"{_HINT}"
        )
    for i, (mine, theirs) in enumerate(zip(own, saved, strict=True)):
        expected = [labels[number] for number in mine["params"]]
        found = theirs["params"]
        differing = sorted(map(str, set(expected) ^ set(found)))
        if differing or len(expected) != len(found):
            raise EnvironmentFaultError(
                f"{name}: parameter group {i} has {len(expected)} parameters in the run and "
                f"{len(found)} in the checkpoint; the first that only one of them has is "
                f"{differing[0] if differing else expected[-1]}. {_HINT}"
            )


def _renumber(value: dict[str, Any], own: list[dict[str, Any]], names: list[str]) -> None:
    """Put this run's numbers back in place of names."""
    numbers = {name: number for number, name in enumerate(names)}
    value["state"] = {numbers[name]: values for name, values in value["state"].items()}
    for mine, theirs in zip(own, value["param_groups"], strict=True):
        theirs["params"] = mine["params"]


def _compare_shapes(
    name: str, optimizer: torch.optim.Optimizer, saved: Mapping[int, Any], labels: list[Any]
) -> None:
    """Refuse moments of another shape where the run has moments already, or as its parameter."""
    for number, parameter in enumerate(_parameters(optimizer)):
        for key, value in saved.get(number, {}).items():
            own = optimizer.state.get(parameter, {}).get(key)
            if not isinstance(own, torch.Tensor) or not isinstance(value, torch.Tensor):
                continue
            if own.shape != value.shape:
                raise EnvironmentFaultError(
                    f"{name}: {key} of {labels[number]} has the shape {tuple(own.shape)} in the "
                    f"run and {tuple(value.shape)} in the checkpoint. {_HINT}"
                )
