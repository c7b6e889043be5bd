"""A worker's side of local SGD: what it takes from the servers, and what it gives to them."""

import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from trainkit.errors import DeadlineError, PeerLostError, TrainkitError
from trainkit.strategies.torch.local_sgd.addresses import Address
from trainkit.strategies.torch.local_sgd.frames import Frame, Kind
from trainkit.strategies.torch.local_sgd.layout import FlatLayout
from trainkit.strategies.torch.local_sgd.link import ServerLink
from trainkit.strategies.torch.local_sgd.membership import Membership, Standing
from trainkit.strategies.torch.local_sgd.replica import Replica
from trainkit.strategies.torch.local_sgd.shard import OuterOptions
from trainkit.waiting import Deadline

__all__ = ["OuterWorker"]

log = logging.getLogger(__name__)


class OuterWorker:
    """Keeps a model in step with the parameters on the servers."""

    def __init__(
        self,
        addresses: Sequence[Address],
        rank: int,
        world_size: int,
        options: OuterOptions,
        *,
        sync_every: int,
        timeout: float,
    ) -> None:
        """Prepare; ``connect`` connects.

        Args:
            addresses: of all servers.
            rank: of this worker; 0 is the chief.
            world_size: workers of the job.
            options: of the outer step; the chief's count.
            sync_every: H, optimizer steps of a round.
            timeout: seconds to wait for servers and for the other workers.
        """
        self.rank, self.world_size = rank, world_size
        self.timeout = timeout
        self.local_steps = 0
        """Optimizer steps since the last round began."""
        self.leaving = False
        """Whether this worker is to stop alone, so that it must not wait for the others."""
        self.rounds_done = 0
        self.seconds_waited = 0.0
        self.longest_wait = 0.0
        self._standing = Standing(options, sync_every)
        self._servers = Membership(addresses, rank, world_size, self._standing, timeout=timeout)

    @property
    def is_chief(self) -> bool:
        """Whether this worker speaks for the job."""
        return self.rank == 0

    @property
    def links(self) -> list[ServerLink]:
        """The connections, in the order of the servers."""
        return self._servers.links

    @property
    def round(self) -> int:
        """The round that is open."""
        return self._standing.round

    @property
    def begun(self) -> bool:
        """Whether this worker has taken parameters from the servers."""
        return self._standing.begun

    @property
    def ranks(self) -> list[int]:
        """Who took part in the last round."""
        return self._standing.ranks

    @property
    def momentum(self) -> dict[str, torch.Tensor]:
        """The outer momentum at the start of the round, by parameter; of the chief alone."""
        return {} if self._servers.replica is None else self._servers.replica.momentum

    @property
    def over(self) -> bool:
        """Whether a server has said that the chief is done."""
        return any(link.over for link in self.links)

    @property
    def stop_by(self) -> Deadline | None:
        """Until when a round may be waited for; None as long as nobody wants to stop."""
        return self.links[0].stop_by

    @stop_by.setter
    def stop_by(self, deadline: Deadline) -> None:
        for link in self.links:
            link.stop_by = deadline

    def connect(self, timeout: float) -> None:
        """Reach all servers.

        Raises:
            DeadlineError: names the server that cannot be reached.
        """
        self._servers.connect(timeout)

    def attach(self, layout: FlatLayout) -> None:
        """Say which tensors are trained."""
        self._servers.replica = Replica(layout, len(self.links))

    def is_running(self) -> bool:
        """Whether all servers have parameters, of one and the same start."""
        return self._servers.is_running()

    def bring(
        self, number: int, momentum: dict[str, torch.Tensor], position: dict[str, Any] | None
    ) -> None:
        """As the chief, give the model as it is now to all servers.

        Args:
            number: of the round that opens.
            momentum: of the outer optimizer, by parameter; what is not there is 0.
            position: what a worker that comes in needs besides parameters.
        """
        mine = self._standing
        self._replica.take_model(momentum, moving=mine.options.momentum > 0)
        mine.round, mine.position = number, {"round": number, **(position or {})}
        self._servers.bring()

    def join(self) -> dict[str, Any]:
        """Come in with the round that is next, and take its parameters.

        Returns:
            The position in the data that goes with them, as a worker gave it; empty if none did.
        """
        mine = self._standing
        first = self._servers.come_in(self.links[0], None, Deadline(self.timeout))
        mine.round, mine.seed = first.round, first.meta["seed"]
        mine.call, mine.together = first.meta["call"], first.meta["together"]
        mine.adopt(first.meta)
        self._replica.take_state(0, first.payload)
        for link in self.links[1:]:
            state = self._servers.come_in(link, mine.round, Deadline(self.timeout))
            self._replica.take_state(link.index, state.payload)
        self._open_round()
        mine.begun = True
        position: dict[str, Any] = first.meta["position"]
        mine.position = position
        return position if "step" in position else {}

    def step_done(self) -> bool:
        """Count an optimizer step; ends the round if it was the last of it."""
        self.local_steps += 1
        if self.local_steps < self._standing.sync_every:
            return False
        try:
            self.synchronize()
        except DeadlineError as reason:
            if self.stop_by is None:
                raise
            log.warning("%s Going back to the start of round %d.", reason, self.round)
            self.fall_back()
            return False
        return True

    def has_learnt(self) -> bool:
        """Whether parameters have changed since the round began."""
        return self.begun and self._replica.has_learnt()

    def synchronize(self, deadline: Deadline | None = None) -> None:
        """End the round here: give what was learnt, take what became of it.

        Nothing happens where there was no step since the last round.

        Raises:
            DeadlineError: a server cannot be reached, or ``deadline`` passed.
            PeerLostError: this worker was given up, or is rounds behind.
        """
        if not self.local_steps or not self.begun or self.over:
            return
        began = time.monotonic()
        deltas = self._push()
        outcomes = [
            self._outcome(link, delta, deadline)
            for link, delta in zip(self.links, deltas, strict=True)
        ]
        # Only now that all are there: of a round that is given up in between nothing is taken.
        for link, outcome in zip(self.links, outcomes, strict=True):
            self._take(link, outcome)
        self._standing.round += 1
        self._open_round()
        self.rounds_done += 1
        waited = time.monotonic() - began
        self.seconds_waited += waited
        self.longest_wait = max(self.longest_wait, waited)

    def fall_back(self) -> None:
        """Give the model the parameters of the round's start, and forget the steps since."""
        if self.begun:
            self._open_round()

    def tell_position(self, position: dict[str, Any]) -> None:
        """Say where in the data the round begins, for workers that come in with it."""
        mine, link = self._standing, self.links[0]
        mine.position = {"round": mine.round, **position}
        try:
            link.send(Kind.POSITION, round=mine.round, meta=mine.position)
        except OSError as reason:
            log.debug("%s: %s; the next round mends it", link.name, reason)

    def gather(
        self, name: str, value: memoryview, timeout: float | None = None
    ) -> dict[int, memoryview]:
        """Give a small value and get those of all workers that are there, by rank.

        Raises:
            DeadlineError: some did not come within ``timeout`` seconds; names them.
        """
        mine, first = self._standing, self.links[0]
        deadline = Deadline(self.timeout if timeout is None else timeout)

        def exchange() -> Frame:
            first.send(Kind.PARK)
            meta = {"call": mine.call, "name": name}
            first.send(Kind.GATHER, meta=meta, payloads=(value,))
            return first.receive(Kind.GATHERED, deadline=deadline)

        for link in self.links[1:]:
            self._servers.attempt(link, partial(link.send, Kind.PARK))
        frame = self._servers.attempt(first, exchange)
        mine.call += 1
        values, begin = {}, 0
        for rank, size in zip(frame.meta["ranks"], frame.meta["sizes"], strict=True):
            values[rank] = frame.payload[begin : begin + size]
            begin += size
        return values

    def leave(self, *, stopping: bool) -> None:
        """Go in order.

        Args:
            stopping: whether the job, or this worker, was asked to stop; otherwise the chief's
                going is the end of the job.
        """
        done = self.is_chief and not stopping
        meta = {"done": done, "stopping": stopping and not self.leaving}
        if self.over:
            self.hang_up()
            return
        if self.begun and self.local_steps and self.leaving:
            self._push()
        self._servers.leave(meta, insist=done)

    def hang_up(self) -> None:
        """Close all connections; the servers take this worker for lost."""
        self._servers.hang_up()

    # -- one round ------------------------------------------------------------------------------

    def _push(self) -> list[memoryview]:
        deltas = self._replica.delta(self._standing.options.wire)
        # To all servers before any answer is awaited: each of them waits for all workers.
        for link, part in zip(self.links, deltas, strict=True):
            try:
                link.send(Kind.PUSH, round=self.round, payloads=(part,))
            except OSError as reason:
                log.warning("%s is lost: %s", link.name, reason)
        return deltas

    def _outcome(self, link: ServerLink, delta: memoryview, deadline: Deadline | None) -> Frame:
        while True:
            try:
                frame = link.receive(Kind.ROUND, Kind.LATE, deadline=deadline)
                if frame.round <= self.round:
                    continue  # to a part that was sent again, of which the first had come
            except TrainkitError:
                raise
            except OSError as reason:
                frame = self._servers.come_back(link, reason, deadline)
                if frame.round == self.round:  # the push was lost with the connection
                    try:
                        link.send(Kind.PUSH, round=self.round, payloads=(delta,))
                    except OSError:
                        log.debug("%s is lost again", link.name)
                    continue
            if frame.round != self.round + 1:
                raise PeerLostError(
                    f"worker {self.rank} ends round {self.round}, and {link.name} is at round "
                    f"{frame.round}: the others went on without it. Started again, it comes in "
                    f"where they are."
                )
            return frame

    def _take(self, link: ServerLink, outcome: Frame) -> None:
        if outcome.kind is Kind.ROUND:
            self._replica.take_round(link.index, outcome.payload, self._standing.options.wire)
            self._standing.ranks = outcome.meta["ranks"]
            return
        what = "does not count" if outcome.kind is Kind.LATE else "may not count"
        log.warning(
            "round %d was over before this worker's part reached %s, or its answer this worker: "
            "what was learnt in it %s there",
            self.round,
            link.name,
            what,
        )
        self._replica.take_state(link.index, outcome.payload)

    def _open_round(self) -> None:
        self._replica.give_model()
        self._standing.opened = time.monotonic()
        self.local_steps = 0

    @property
    def _replica(self) -> Replica:
        if self._servers.replica is None:
            raise AssertionError("no model was set up")  # a bug of ours
        return self._servers.replica
