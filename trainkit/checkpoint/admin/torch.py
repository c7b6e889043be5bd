"""Entries as files that ``torch.load(..., weights_only=True)`` reads."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainkit.checkpoint.adapters import arrays
from trainkit.checkpoint.adapters.base import Saved
from trainkit.errors import DependencyError

try:
    import torch

    from trainkit.checkpoint.adapters.torch.tensors import restored
except ImportError:
    raise DependencyError(
        "exporting for torch needs it; install trainkit[torch], or torch"
    ) from None

__all__ = ["write_module", "write_values"]


def write_module(documents: Mapping[str, Saved], path: Path) -> None:
    """Write a module's state dict: its tensors, and beside them what its extra state was."""
    state: dict[str, Any] = {}
    for document in documents.values():
        if document.json is None:
            state.update({name: restored(stored) for name, stored in document.tensors.items()})
        else:
            state.update(_plain(document.value()))
    _write(state, path)


def write_values(documents: Mapping[str, Saved], path: Path) -> None:
    """Write the value of any other entry; several documents become a dict by their paths."""
    values = {name: _plain(document.value()) for name, document in documents.items()}
    _write(next(iter(values.values())) if len(values) == 1 else values, path)


def _write(value: Any, path: Path) -> None:
    with path.open("xb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())


def _plain(value: Any) -> Any:
    """``value`` with numpy's arrays as tensors: torch refuses arrays where no code may run."""
    if arrays.is_array(value):
        return torch.from_numpy(value) if arrays.is_whole_array(value) else value.item()
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = _plain(item)
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value
