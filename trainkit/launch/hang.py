"""Ranks that no longer get anywhere: found by their steps, shown by their stacks."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainkit.lifecycle.heartbeat import Pulse

__all__ = ["HangWatch", "Stuck"]

_EVERY = 1.0
"""Seconds between two looks."""


@dataclass(frozen=True, slots=True)
class Stuck:
    """A rank that has done no step for too long."""

    rank: int
    step: int
    seconds: float
    """Since its last step."""
    alive: bool
    """Whether its process runs; one that was stopped, or waits in the kernel, does not."""

    def __str__(self) -> str:
        how = "" if self.alive else ", and its process does not run (stopped, or in the kernel)"
        since = "since it began" if self.step < 0 else f"after step {self.step}"
        return f"rank {self.rank}: no step for {self.seconds:.0f} s {since}{how}"


class HangWatch:
    """Looks at the pulse of ranks. One that has done no step yet, or has ended, is left alone."""

    def __init__(self, timeout: float) -> None:
        """Prepare.

        Args:
            timeout: seconds without a step after which a rank is stuck; 0 is never.
        """
        self._timeout = timeout
        self._looked = 0.0
        self._last: dict[int, tuple[Pulse, float, float]] = {}

    def reset(self) -> None:
        """Ranks were started anew."""
        self._last.clear()

    def stuck(self, files: Mapping[int, Path]) -> list[Stuck]:
        """Of the ranks with these files those that are stuck, the one that is behind first."""
        now = time.monotonic()
        if not self._timeout or now - self._looked < min(_EVERY, self._timeout / 4):
            return []
        self._looked = now
        found = []
        for rank, path in files.items():
            pulse = Pulse.read(path)
            if pulse is None:
                continue
            before, moved, beaten = self._last.get(rank, (None, now, now))
            if before is None or (before.step, before.polls) != (pulse.step, pulse.polls):
                moved = now
            if before is None or before.beats != pulse.beats:
                beaten = now
            self._last[rank] = (pulse, moved, beaten)
            if now - moved > self._timeout / 2:
                alive = now - beaten < max(2.0, self._timeout / 2)
                found.append(Stuck(rank, pulse.step, now - moved, alive))
        # Once one is stuck the others are about to be, for they wait for it. One that has noted no
        # step yet is never the first, and may be the one that is waited for.
        if not any(one.step >= 0 and one.seconds > self._timeout for one in found):
            return []
        return sorted(found, key=lambda one: (one.alive, one.step, -one.seconds))
