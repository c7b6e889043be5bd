"""Who takes part in a round, and when it is over; pure, so that every order can be tested.

A round is open from one outer step to the next. Each member pushes once; the round is over when
nobody is missing any more. Who is lost is not waited for, who is new comes in with the next round.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Rounds"]

_RETURN = 15.0
"""Seconds that a worker is given to come back to a server that lost its connections, or to come
to this server after it came to the first one."""
_REASSEMBLY = 60.0
"""Seconds in which workers that all went away are expected back, before those go on that came."""


@dataclass(slots=True)
class _Joiner:
    since: float
    wanted: int
    """The round in which it is elsewhere; -1 where it is in none."""
    earliest: int | None
    """The round from which on it may be in; None as soon as nobody is in, or all have come."""


@dataclass(slots=True)
class Rounds:
    """Membership and progress of one server's rounds. Times are seconds on one monotonic clock."""

    world_size: int
    patience: float
    """How long a member may stay behind the first one that pushed; at least as long as that one
    took."""
    round: int | None = None
    """The open round; None until the chief has brought parameters."""
    begun: bool = False
    """Whether a first round has been entered; until then nobody goes on without the others."""
    members: dict[int, int] = field(default_factory=dict)
    """Rank → the round that it pushes next."""
    parked: set[int] = field(default_factory=set)
    _joiners: dict[int, _Joiner] = field(default_factory=dict)
    _pushed: dict[int, dict[int, Any]] = field(default_factory=dict)
    _expected: dict[int, float] = field(default_factory=dict)
    """Rank → until when it is waited for though it is no member yet."""
    _opened: float = 0.0
    _first_push: float | None = None

    def seed(
        self,
        number: int,
        now: float,
        *,
        expected: Iterable[int],
        begun: bool,
        within: float = 0.0,
    ) -> None:
        """Open the round ``number``.

        Args:
            number: of the round.
            now: seconds.
            expected: ranks that were in it at another time, and will come back.
            begun: whether the job had been under way.
            within: seconds in which they are sure to come, if that is long: who trains finds out
                that its connection is lost only when it has something to send.
        """
        self.round, self._opened, self._first_push = number, now, None
        self._pushed.clear()
        self.begun = begun
        self.expect(expected, now, within)

    def expect(self, ranks: Iterable[int], now: float, within: float = 0.0) -> None:
        """Wait a while for members that have not come to this server yet."""
        for rank in ranks:
            if rank not in self.members:
                self._expected[rank] = now + max(_RETURN, within)

    def ask(self, rank: int, now: float, *, earliest: int | None) -> None:
        """Let ``rank`` in: from the round ``earliest`` on, or (None) when it is time."""
        wanted = -1 if earliest is None else earliest
        if earliest is None and self.members and self.round is not None:
            earliest = self.round + 1
        self._joiners[rank] = _Joiner(now, wanted, earliest)

    def admit(self, now: float) -> list[int]:
        """Take in those whose time has come; they begin with the open round."""
        if self.round is None or not self._joiners:
            return []
        everybody = [rank for rank in self._joiners if rank not in self.members]
        waited = now - min(joiner.since for joiner in self._joiners.values())
        assembled = not self.members and (
            len(everybody) >= self.world_size or (self.begun and waited >= _REASSEMBLY)
        )
        if assembled:
            # The first server may have ended a round whose parts never came to this one, since all
            # who were in it are gone. Nobody will bring them, so this server passes it over.
            self._pass_over(max(joiner.wanted for joiner in self._joiners.values()), now)
        came = [
            rank
            for rank, joiner in self._joiners.items()
            if assembled or (joiner.earliest is not None and joiner.earliest <= self.round)
        ]
        for rank in came:
            del self._joiners[rank]
            self.members[rank] = self.round
            self._expected.pop(rank, None)
            self.parked.discard(rank)
        self.begun = self.begun or bool(came)
        if self.members:
            for joiner in self._joiners.values():
                joiner.earliest = self.round + 1 if joiner.earliest is None else joiner.earliest
        return came

    def _pass_over(self, number: int, now: float) -> None:
        if self.round is None or number <= self.round:
            return
        self.round, self._opened, self._first_push = number, now, None
        self._pushed = {at: parts for at, parts in self._pushed.items() if at >= number}

    def push(self, rank: int, number: int, payload: Any, now: float) -> bool:
        """Take a contribution; False if its round is over, so that it cannot count any more."""
        self.parked.discard(rank)  # it is in the loop, whatever becomes of this part
        if self.round is None or number < self.round:
            self.members[rank] = self.round or 0
            return False
        self.members[rank] = number + 1
        # Twice after a connection was lost: the first counts.
        self._pushed.setdefault(number, {}).setdefault(rank, payload)
        if number == self.round and self._first_push is None:
            self._first_push = now
        return True

    def waits(self, rank: int) -> bool:
        """Whether ``rank`` has done its part of the open round."""
        return self.round is not None and self.members.get(rank, -1) > self.round

    def park(self, rank: int) -> None:
        """Do not wait for ``rank`` until it pushes again."""
        if rank in self.members:
            self.parked.add(rank)

    def leave(self, rank: int) -> None:
        """Wait for ``rank`` no more; what it has pushed counts."""
        self.members.pop(rank, None)
        self._joiners.pop(rank, None)
        self._expected.pop(rank, None)
        self.parked.discard(rank)
        if not self.members:
            # Those who waited for a round that nobody will end now assemble anew.
            for joiner in self._joiners.values():
                if joiner.earliest == (self.round or 0) + 1:
                    joiner.earliest = None

    def missing(self, now: float) -> list[int]:
        """Ranks that the open round waits for."""
        if self.round is None:
            return []
        here = self._pushed.get(self.round, {})
        late = [
            rank
            for rank, number in self.members.items()
            if number <= self.round and rank not in here and rank not in self.parked
        ]
        coming = [rank for rank, until in self._expected.items() if until > now]
        return sorted({*late, *coming} - here.keys())

    def absent(self) -> list[int]:
        """Ranks of the job that have not asked to be let in."""
        there = {*self.members, *self._joiners}
        return [rank for rank in range(self.world_size) if rank not in there]

    def is_over(self, now: float) -> bool:
        """Whether the open round has all that it waits for."""
        return (
            self.round is not None and bool(self._pushed.get(self.round)) and not self.missing(now)
        )

    def close(self, now: float) -> dict[int, Any]:
        """End the open round and open the next; returns the contributions in order of ranks."""
        if self.round is None:
            raise AssertionError("no round is open")  # a bug of ours
        contributions = self._pushed.pop(self.round)
        self.round += 1
        self._opened = now
        self._first_push = now if self._pushed.get(self.round) else None
        self._expected.clear()
        return dict(sorted(contributions.items()))

    def overdue(self, now: float) -> list[int]:
        """Members that the open round has waited for long enough."""
        if self._first_push is None:
            return []
        allowed = max(self.patience, self._first_push - self._opened)
        if now < self._first_push + allowed:
            return []
        return [rank for rank in self.missing(now) if rank in self.members]
