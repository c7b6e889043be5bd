"""Checkpoints that a kill at any moment cannot damage. Loads no framework."""

from trainkit.checkpoint.manager import CheckpointManager
from trainkit.checkpoint.options import CheckpointOptions
from trainkit.checkpoint.policy import AnyOf, EverySeconds, EverySteps, SavePolicy, StopMonitor

__all__ = [
    "AnyOf",
    "CheckpointManager",
    "CheckpointOptions",
    "EverySeconds",
    "EverySteps",
    "SavePolicy",
    "StopMonitor",
]
