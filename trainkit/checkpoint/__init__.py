"""Checkpoints that a kill at any moment cannot damage. Loads no framework.

Names are looked up when first used: the process that writes needs few of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainkit.checkpoint.manager import CheckpointManager as CheckpointManager
    from trainkit.checkpoint.options import CheckpointOptions as CheckpointOptions
    from trainkit.checkpoint.policy import AnyOf as AnyOf
    from trainkit.checkpoint.policy import EverySeconds as EverySeconds
    from trainkit.checkpoint.policy import EverySteps as EverySteps
    from trainkit.checkpoint.policy import SavePolicy as SavePolicy
    from trainkit.checkpoint.policy import StopMonitor as StopMonitor
    from trainkit.checkpoint.retention import KeepAny as KeepAny
    from trainkit.checkpoint.retention import KeepBest as KeepBest
    from trainkit.checkpoint.retention import KeepEvery as KeepEvery
    from trainkit.checkpoint.retention import KeepLast as KeepLast
    from trainkit.checkpoint.retention import KeepNewer as KeepNewer
    from trainkit.checkpoint.retention import RetentionPolicy as RetentionPolicy
    from trainkit.checkpoint.retention import SavedStep as SavedStep
    from trainkit.checkpoint.save.retention import Removal as Removal
    from trainkit.checkpoint.save.retention import plan_removals as plan_removals
    from trainkit.checkpoint.save.retention import remove_step as remove_step

_HOMES = {
    "AnyOf": "trainkit.checkpoint.policy",
    "CheckpointManager": "trainkit.checkpoint.manager",
    "CheckpointOptions": "trainkit.checkpoint.options",
    "EverySeconds": "trainkit.checkpoint.policy",
    "EverySteps": "trainkit.checkpoint.policy",
    "KeepAny": "trainkit.checkpoint.retention",
    "KeepBest": "trainkit.checkpoint.retention",
    "KeepEvery": "trainkit.checkpoint.retention",
    "KeepLast": "trainkit.checkpoint.retention",
    "KeepNewer": "trainkit.checkpoint.retention",
    "Removal": "trainkit.checkpoint.save.retention",
    "RetentionPolicy": "trainkit.checkpoint.retention",
    "SavePolicy": "trainkit.checkpoint.policy",
    "SavedStep": "trainkit.checkpoint.retention",
    "StopMonitor": "trainkit.checkpoint.policy",
    "plan_removals": "trainkit.checkpoint.save.retention",
    "remove_step": "trainkit.checkpoint.save.retention",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'trainkit.checkpoint' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
