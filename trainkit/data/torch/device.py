"""Batches to a device, whatever they are made of."""

import copy
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

__all__ = ["mover"]


def mover(device: torch.device, *, non_blocking: bool) -> Callable[[Any], Any] | None:
    """What brings a batch to ``device``; None for the CPU, where batches stay untouched.

    Args:
        device: where batches go.
        non_blocking: whether copies may overlap with the host; they do from pinned memory.

    Returns:
        A function that returns tensors, tuples, named tuples, lists, mappings, dataclasses and
        objects that have ``to(device)`` on the device, and anything else as it is.
    """
    if device.type == "cpu":
        return None

    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device, non_blocking=non_blocking)
        if isinstance(value, tuple):
            moved = [move(part) for part in value]
            return type(value)(*moved) if hasattr(value, "_fields") else tuple(moved)
        if isinstance(value, list):
            return [move(part) for part in value]
        if isinstance(value, Mapping):
            return _move_mapping(value, move)
        if isinstance(value, str | bytes | int | float | None):
            return value
        if callable(to := getattr(value, "to", None)):
            return to(device)
        if is_dataclass(value) and not isinstance(value, type):
            moved_value = copy.copy(value)
            for field in fields(value):
                # Frozen dataclasses too; __init__ may do more than take the fields.
                part = move(getattr(value, field.name))
                object.__setattr__(moved_value, field.name, part)
            return moved_value
        return value

    return move


def _move_mapping(value: Mapping[Any, Any], move: Callable[[Any], Any]) -> Mapping[Any, Any]:
    """A mapping of the same class, with the values moved."""
    if type(value) is dict:
        return {name: move(part) for name, part in value.items()}
    if isinstance(value, MutableMapping):
        moved = copy.copy(value)  # keeps a defaultdict's factory, a BatchEncoding's extras
        for name, part in value.items():
            moved[name] = move(part)
        return moved
    return {name: move(part) for name, part in value.items()}
