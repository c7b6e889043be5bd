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

_HOMES = {
    "AnyOf": "trainkit.checkpoint.policy",
    "CheckpointManager": "trainkit.checkpoint.manager",
    "CheckpointOptions": "trainkit.checkpoint.options",
    "EverySeconds": "trainkit.checkpoint.policy",
    "EverySteps": "trainkit.checkpoint.policy",
    "SavePolicy": "trainkit.checkpoint.policy",
    "StopMonitor": "trainkit.checkpoint.policy",
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
