"""Numbers of saving and restoring that seldom need a change."""

from dataclasses import dataclass

__all__ = ["CheckpointOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointOptions:
    """Numbers that seldom need a change."""

    timeout: float = 1800.0
    """Seconds to wait for the slowest rank in a save or a restore."""
    attempts: int = 3
    """How often a save is tried while the storage answers with I/O errors."""
    pause: float = 2.0
    """Seconds before the second attempt; doubled before each further one."""
    visible_within: float = 15.0
    """Seconds that a network file system may take to show one rank what another wrote."""
