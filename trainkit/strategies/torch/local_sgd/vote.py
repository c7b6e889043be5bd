"""When all workers stop, as they agree through the first server."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

__all__ = ["StopVote"]


@dataclass(slots=True)
class StopVote:
    """After which step all members stop: the highest that one of them has entered."""

    hold: bool = False
    entered: dict[int, int] = field(default_factory=dict)

    def answer(
        self, what: str, rank: int, entered: int | None, members: Callable[[], Collection[int]]
    ) -> dict[str, object]:
        """Answer a question of a worker's."""
        if what == "hold":
            self.hold = True
        elif what == "publish" and entered is not None:
            self.entered[rank] = entered
        if what != "target":
            return {"hold": self.hold}
        missing = sorted(set(members()) - self.entered.keys())
        target = None if missing or not self.entered else max(self.entered.values())
        return {"hold": self.hold, "target": target, "missing": missing}
