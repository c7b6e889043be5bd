"""The saved state of a loader, and what a run must not change when it is restored."""

from collections.abc import Mapping
from typing import Any

from trainkit.errors import DataError, EnvironmentFaultError

__all__ = ["FORMAT", "check_same_data"]

FORMAT = 1
"""Version of the saved state."""

_MUST_MATCH = {
    "seed": "seed",
    "dataset_length": "number of samples in the dataset",
    "length": "length of an epoch",
    "order": "order of samples",
    "train": "training rules",
}
"""Keys whose values decide which samples a position stands for."""


def check_same_data(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse a position in other data, or in another order of the same data.

    Args:
        saved: the state to restore.
        own: the state of the loader that is to take it.

    Raises:
        DataError: ``saved`` is no state of a loader.
        EnvironmentFaultError: the data differ; the message names all differences.
    """
    missing = [key for key in own if key not in saved and key not in ("dataset", "finished")]
    if missing or saved.get("format") != FORMAT:
        raise DataError(
            f"expected a loader's state of format {FORMAT}, found format {saved.get('format')!r} "
            f"with keys {sorted(saved)}. Was it saved under the same name?"
        )
    changed = [
        f"{name}: {saved[key]} was saved, {own[key]} found"
        for key, name in _MUST_MATCH.items()
        if saved[key] != own[key]
    ]
    if changed:
        raise EnvironmentFaultError(
            f"the data loader cannot go on where the saved run stopped ({'; '.join(changed)}). "
            f"Restore with the same data and seed, or start a new run in another checkpoint "
            f"folder, with the saved weights if they are wanted."
        )
