"""How a worker comes in to the servers, comes back to one, and gives it its memory back."""

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from trainkit.errors import TrainkitError
from trainkit.strategies.torch.local_sgd.addresses import Address
from trainkit.strategies.torch.local_sgd.frames import Frame, Kind
from trainkit.strategies.torch.local_sgd.link import ServerLink
from trainkit.strategies.torch.local_sgd.replica import Replica
from trainkit.strategies.torch.local_sgd.shard import OuterOptions, options_from
from trainkit.waiting import Deadline

__all__ = ["Membership", "Standing"]

T = TypeVar("T")
log = logging.getLogger(__name__)

_GOODBYE = 10.0
"""Seconds for telling a server, to which the connection broke, that the job is done."""


@dataclass(slots=True)
class Standing:
    """Where a worker is in the job, as the servers see it."""

    options: OuterOptions
    """Of the outer step; the chief's count."""
    sync_every: int
    """H, optimizer steps of a round."""
    round: int = 0
    begun: bool = False
    ranks: list[int] = field(default_factory=list)
    """Who took part in the last round."""
    together: list[int] = field(default_factory=list)
    """Who was in when this worker came."""
    seed: str | None = None
    """Of which start of the job the parameters are."""
    position: dict[str, Any] = field(default_factory=dict)
    """Where in the data the round begins."""
    call: int = 0
    """Number of the next gathering."""
    opened: float = 0.0
    """When the round began here, on the monotonic clock."""

    def adopt(self, meta: dict[str, Any]) -> None:
        """Go by what the chief has told the servers, also where this worker was told otherwise."""
        options, sync_every = options_from(meta["outer"]), int(meta["sync_every"])
        if (options, sync_every) != (self.options, self.sync_every):
            log.warning(
                "this worker's settings of local SGD (%s, every %d steps) differ from those that "
                "the job began with, which hold: %s, every %d steps",
                self.options,
                self.sync_every,
                options,
                sync_every,
            )
        self.options, self.sync_every = options, sync_every


class Membership:
    """Connections to all servers that are made again when they break.

    Whatever was lost meanwhile is mended on the way: the server hears again who this worker is
    and where, and a server without memory gets it back from the chief.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        rank: int,
        world_size: int,
        standing: Standing,
        *,
        timeout: float,
    ) -> None:
        """Prepare; ``connect`` connects.

        Args:
            addresses: of all servers.
            rank: of this worker; 0 is the chief.
            world_size: workers of the job.
            standing: of this worker; kept up to date by whoever ends rounds.
            timeout: seconds to wait for servers.
        """
        process = uuid.uuid4().hex
        self.links = [ServerLink(i, a, rank, world_size, process) for i, a in enumerate(addresses)]
        self.replica: Replica | None = None
        """Once there is a model; until then this worker can connect, and not come in."""
        self._is_chief = rank == 0
        self._standing = standing
        self._timeout = timeout

    def connect(self, timeout: float) -> None:
        """Reach all servers.

        Raises:
            DeadlineError: names the server that cannot be reached.
        """
        deadline = Deadline(timeout)
        for link in self.links:
            link.connect(deadline)

    def is_running(self) -> bool:
        """Whether all servers have parameters, of one and the same start."""
        for link in self.links:
            self.attempt(link, link.greet)
        seeds = {link.welcome.get("seed") for link in self.links}
        return len(seeds) == 1 and None not in seeds

    def attempt(self, link: ServerLink, act: Callable[[], T]) -> T:
        """Do it, coming back as often as it takes within the time."""
        deadline = Deadline(self._timeout)
        while True:
            try:
                return act()
            except TrainkitError:
                raise
            except OSError as reason:
                if self._standing.begun:
                    self.come_back(link, reason, deadline)
                else:
                    log.debug("%s is lost: %s", link.name, reason)
                    self._reconnect(link, deadline)

    def bring(self) -> None:
        """As the chief, give all servers what this worker has, as a new start of the job."""
        self._standing.seed = uuid.uuid4().hex
        deadline = Deadline(self._timeout)
        for link in self.links:
            try:
                self._seed_server(link, expected=[])
            except TrainkitError:
                raise
            except OSError as reason:
                log.debug("%s is lost: %s", link.name, reason)
                self._reconnect(link, deadline)  # which brings them too

    def come_in(self, link: ServerLink, earliest: int | None, deadline: Deadline) -> Frame:
        """Ask to be let in by one server, and return what it then has."""
        while True:
            try:
                return self._ask_in(link, earliest, deadline)
            except TrainkitError:
                raise
            except OSError as reason:
                log.warning("%s is lost: %s", link.name, reason)
                self._reconnect(link, deadline)

    def come_back(
        self, link: ServerLink, reason: OSError, deadline: Deadline | None = None
    ) -> Frame:
        """Come back to a server after the connection was lost, or the server itself."""
        log.warning("%s is lost (%s): waiting until it is back", link.name, reason)
        deadline = deadline or Deadline(self._timeout)
        while True:
            self._reconnect(link, deadline)
            try:
                state = self._ask_in(link, self._standing.round, deadline)
            except TrainkitError:
                raise
            except OSError as again:
                log.debug("%s is lost again: %s", link.name, again)
                continue
            log.info("%s is back, at round %d", link.name, state.round)
            return state

    def leave(self, meta: dict[str, Any], *, insist: bool) -> None:
        """Say that this worker goes, and hang up.

        Args:
            meta: what else a server has to know of it.
            insist: whether to connect again for it where a connection has broken: a server that
                does not hear of the job's end would wait for workers, and end as a failure.
        """
        for link in self.links:
            try:
                _say_goodbye(link, meta)
            except (OSError, SystemExit, TrainkitError) as reason:
                log.debug("%s: %s", link.name, reason)
                if insist:
                    self._insist(link, meta)
        self.hang_up()

    def _insist(self, link: ServerLink, meta: dict[str, Any]) -> None:
        try:
            link.close()
            link.connect(Deadline(_GOODBYE))
            _say_goodbye(link, meta)
        except (OSError, SystemExit, TrainkitError) as reason:
            log.warning("%s was not told that the job is done: %s", link.name, reason)

    def hang_up(self) -> None:
        """Close all connections; the servers take this worker for lost."""
        for link in self.links:
            link.close()

    def _ask_in(self, link: ServerLink, earliest: int | None, deadline: Deadline) -> Frame:
        mine = self._standing
        meta = {
            "earliest": earliest,
            "together": [] if mine.begun else mine.together,
            "seed": mine.seed,
            "fingerprint": self._attached().layout.fingerprint,
            "keeper": self._is_chief,
        }
        link.send(Kind.JOIN, meta=meta)
        return link.receive(Kind.STATE, deadline=deadline)

    def _reconnect(self, link: ServerLink, deadline: Deadline) -> None:
        mine = self._standing
        while True:
            link.connect(deadline)
            if not self._is_chief or mine.seed is None or link.welcome["seed"] is not None:
                return
            # A server that has lost its memory gets it back from the chief's.
            try:
                self._seed_server(link, expected=mine.ranks or mine.together)
            except TrainkitError:
                raise
            except OSError:
                continue
            log.info("%s had no parameters: given those of round %d", link.name, mine.round)
            return

    def _seed_server(self, link: ServerLink, *, expected: list[int]) -> None:
        mine, replica = self._standing, self._attached()
        size, outer, payloads = replica.part(link.index)
        meta = {
            "seed": mine.seed,
            "fingerprint": replica.layout.fingerprint,
            "size": size,
            "num_outer": outer,
            "outer": mine.options.dump(),
            "position": mine.position,
            "expected": expected,
            "begun": mine.begun,
            "sync_every": mine.sync_every,
            "call": mine.call,
            "took": time.monotonic() - mine.opened if mine.begun else 0.0,
        }
        link.send(Kind.SEED, round=mine.round, meta=meta, payloads=payloads)
        link.receive(Kind.OK)

    def _attached(self) -> Replica:
        if self.replica is None:
            raise AssertionError("no model was set up")  # a bug of ours
        return self.replica


def _say_goodbye(link: ServerLink, meta: dict[str, Any]) -> None:
    link.send(Kind.LEAVE, meta=meta)
    # Until it is heard: a connection that is closed with something unread in it may take with it
    # what the server has not read yet.
    while link.receive(Kind.BYE, Kind.ROUND, Kind.LATE).kind is not Kind.BYE:
        pass
