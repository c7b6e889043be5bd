"""How long saves take here, and what there is time for before a kill."""

from collections import deque
from enum import Enum

__all__ = ["Pace", "Plan"]

_REMEMBERED = 3
"""Saves whose longest is expected: stores have good minutes and bad ones."""

_MARGIN = 1.2
"""By how much longer than that a save is expected to take under a stop, with all ranks at once."""

_HOPELESS = 2.0
"""A save that needs so many times the time that is left is not begun; any other is worth a try,
since one that is cut off costs nothing that was committed."""


class Plan(Enum):
    """What to do with the state when the job is to stop."""

    UPLOAD = "save it to the root"
    KEEP = "save it to the local tier alone"
    SKIP = "leave it"


class Pace:
    """Measures saves of one state, whose size hardly changes, and plans by that."""

    def __init__(self) -> None:
        self._uploads: deque[float] = deque(maxlen=_REMEMBERED)
        self._keeps: deque[float] = deque(maxlen=_REMEMBERED)

    def note(self, *, kept: float | None, uploaded: float | None) -> None:
        """Take note of a save.

        Args:
            kept: seconds until the local tier had it; None if it had not.
            uploaded: seconds until the root had it; None if it was not to.
        """
        if kept is not None:
            self._keeps.append(kept)
        if uploaded is not None:
            self._uploads.append(uploaded)

    @property
    def upload(self) -> float | None:
        """Seconds that a save to the root takes; None where none was seen."""
        return max(self._uploads) * _MARGIN if self._uploads else None

    @property
    def keep(self) -> float | None:
        """Seconds that a save to the local tier takes; None where none was seen."""
        return max(self._keeps) * _MARGIN if self._keeps else None

    def plan(self, left: float) -> Plan:
        """What there is time for in ``left`` seconds, which are what is left until the kill."""
        if self.upload is None or self.upload <= left:
            return Plan.UPLOAD
        if self.keep is not None and self.keep <= left:
            return Plan.KEEP
        return Plan.UPLOAD if self.upload < _HOPELESS * left else Plan.SKIP
