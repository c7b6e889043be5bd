"""Calls that all workers make together, through the first server: what each gave goes to all."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from trainkit.strategies.torch.local_sgd.connection import Connection
from trainkit.strategies.torch.local_sgd.frames import Frame, Kind, ProtocolError
from trainkit.strategies.torch.local_sgd.rounds import Rounds

__all__ = ["Gatherings"]


@dataclass(slots=True)
class Gatherings:
    """Calls that every member makes, one after the other; each gets what all of them gave.

    A member that goes away is not waited for; the answer names who is in it.
    """

    number: int = 0
    """Of the call that is open, or comes next; who joins is told it."""
    name: str = ""
    given: dict[int, memoryview] = field(default_factory=dict)
    _before: tuple[str, dict[int, memoryview]] = field(default_factory=lambda: ("", {}))
    """Name and values of the last call, for those whom the answer did not reach."""

    def take(self, connection: Connection, frame: Frame, rounds: Rounds) -> str | None:
        """Take what a worker gives; returns what is wrong, if something is."""
        rank, meta = connection.rank, frame.meta
        if rank is None:
            raise ProtocolError("GATHER before HELLO")
        if rounds.begun and rank not in rounds.members:
            # What the others have passed long ago is not repeated for one that was started again.
            _answer(connection, {rank: frame.payload})
            return None
        number, name = meta["call"], meta["name"]
        before, values = self._before
        if number == self.number - 1 and name == before and rank in values:
            _answer(connection, values)
            return None
        return self._give(rank, number, name, frame.payload)

    def _give(self, rank: int, number: int, name: str, value: memoryview) -> str | None:
        if number < self.number:
            return (
                f"worker {rank} is at {name!r} (call {number}), and the others went on without it. "
                f"Started again, it comes in where they are"
            )
        if number != self.number or (self.given and name != self.name):
            where = f"{self.name!r} (call {self.number})" if self.given else f"call {self.number}"
            return (
                f"worker {rank} is at {name!r} (call {number}), and the others are at {where}: all "
                f"workers have to make the same calls of ctx in the same order"
            )
        self.name = name
        self.given[rank] = value
        return None

    def missing(self, rounds: Rounds) -> list[int]:
        """Whom the open call waits for: at the start all workers of the job, then who is in."""
        members: Collection[int] = rounds.members if rounds.begun else range(rounds.world_size)
        return sorted(set(members) - self.given.keys()) if self.given else []

    def advance(self, rounds: Rounds, workers: Mapping[int, Connection]) -> None:
        """Answer all of ``workers`` that gave, if the open call waits for nobody any more."""
        if not self.given or self.missing(rounds):
            return
        given = dict(sorted(self.given.items()))
        self.given, self._before = {}, (self.name, given)
        self.number += 1
        for rank in given:
            if rank in workers:
                _answer(workers[rank], given)


def _answer(connection: Connection, given: Mapping[int, memoryview]) -> None:
    meta = {"ranks": [*given], "sizes": [len(value) for value in given.values()]}
    connection.queue(Kind.GATHERED, meta=meta, payloads=tuple(given.values()))
