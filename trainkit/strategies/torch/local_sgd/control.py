"""What workers agree on through the first server: small gatherings, and when all of them stop."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

__all__ = ["Gatherings", "StopVote"]


@dataclass(slots=True)
class Gatherings:
    """Calls that every member makes, one after the other; each gets what all of them gave.

    A member that goes away is not waited for; the answer names who is in it.
    """

    number: int = 0
    """Of the call that is open, or comes next; who joins is told it."""
    name: str = ""
    given: dict[int, memoryview] = field(default_factory=dict)

    def give(self, rank: int, number: int, name: str, value: memoryview) -> str | None:
        """Take the value of ``rank``; returns what is wrong, if something is."""
        if number != self.number or (self.given and name != self.name):
            where = f"{self.name!r} (call {self.number})" if self.given else f"call {self.number}"
            return (
                f"worker {rank} is at {name!r} (call {number}), and the others are at {where}: all "
                f"workers have to make the same calls of ctx in the same order"
            )
        self.name = name
        self.given[rank] = value
        return None

    def missing(self, members: Collection[int]) -> list[int]:
        """Members that the open call waits for."""
        return sorted(set(members) - self.given.keys()) if self.given else []

    def close(self) -> dict[int, memoryview]:
        """End the call; returns what was given, in order of ranks."""
        given = dict(sorted(self.given.items()))
        self.given = {}
        self.number += 1
        return given


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
