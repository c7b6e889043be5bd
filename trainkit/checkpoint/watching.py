"""An evaluator's view of a run's checkpoints: each newest one, as they appear."""

import time
from collections.abc import Callable, Iterator
from typing import Protocol

__all__ = ["Watched", "new_steps"]


class Watched(Protocol):
    """What is asked of a checkpoint manager."""

    def latest_step(self) -> int | None:
        """The newest step that is there."""
        ...

    def restore_latest(self) -> int | None:
        """Restore it, and return which one it was."""
        ...


def new_steps(manager: Watched, *, poll: float, until: Callable[[], bool]) -> Iterator[int]:
    """Restore each newest checkpoint once, and yield its step.

    Args:
        manager: of the checkpoints; steps that were replaced meanwhile are passed over.
        poll: seconds between two looks.
        until: asked before each look; after it was true the newest one is taken once more.
    """
    seen: int | None = None
    while True:
        last = until()
        newest = manager.latest_step()
        if newest is not None and newest != seen:
            restored = manager.restore_latest()
            if restored is not None and restored != seen:
                seen = restored
                yield restored
                continue
            seen = newest
        if last:
            return
        time.sleep(poll)
