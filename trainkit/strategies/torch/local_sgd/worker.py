"""A worker's side of local SGD: what it takes from the servers, and what it gives to them."""

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from trainkit.errors import PeerLostError, TrainkitError
from trainkit.strategies.torch.local_sgd.addresses import Address
from trainkit.strategies.torch.local_sgd.frames import Frame, Kind
from trainkit.strategies.torch.local_sgd.layout import FlatLayout, Mirror, Span
from trainkit.strategies.torch.local_sgd.link import ServerLink
from trainkit.strategies.torch.local_sgd.shard import (
    WIRES,
    OuterOptions,
    as_bytes,
    as_tensor,
    options_from,
)
from trainkit.waiting import Deadline

__all__ = ["OuterWorker"]

log = logging.getLogger(__name__)


class OuterWorker:
    """Keeps a model in step with the parameters on the servers.

    The chief (rank 0) also keeps a copy of the outer momentum. So whatever is on a server is also
    in the chief, and the other way: either may be lost, and nothing but the steps since the last
    round is lost with it.
    """

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
        self.options = options
        self.sync_every = sync_every
        self.timeout = timeout
        self.links = [ServerLink(i, a, rank, world_size) for i, a in enumerate(addresses)]
        self.round = 0
        self.local_steps = 0
        """Optimizer steps since the last round began."""
        self.begun = False
        self.leaving = False
        """Whether this worker is to stop alone, so that it must not wait for the others."""
        self.ranks: list[int] = []
        """Who took part in the last round."""
        self.rounds_done = 0
        self.seconds_waited = 0.0
        self.longest_wait = 0.0
        self._seed: str | None = None
        self._call = 0
        self._together: list[int] = []
        self._position: dict[str, Any] = {}
        self._layout: FlatLayout | None = None
        self._mirror: Mirror | None = None
        self._spans: list[Span] = []
        self._base = torch.empty(0)
        self._momentum = torch.empty(0)

    @property
    def is_chief(self) -> bool:
        """Whether this worker speaks for the job."""
        return self.rank == 0

    @property
    def momentum(self) -> dict[str, torch.Tensor]:
        """The outer momentum at the start of the round, by parameter; of the chief alone."""
        if self._layout is None or not self._momentum.numel():
            return {}
        return self._layout.named_outer(self._momentum)

    def connect(self, timeout: float) -> None:
        """Reach all servers.

        Raises:
            DeadlineError: names the server that cannot be reached.
        """
        deadline = Deadline(timeout)
        for link in self.links:
            link.connect(deadline)

    def attach(self, layout: FlatLayout) -> None:
        """Say which tensors are trained."""
        self._layout = layout
        self._mirror = Mirror(layout)
        self._spans = layout.spans(len(self.links))
        self._base = torch.empty(layout.size)

    def is_running(self) -> bool:
        """Whether all servers have parameters, of one and the same start."""
        for link in self.links:
            self._try(link, link.greet)
        seeds = {link.welcome.get("seed") for link in self.links}
        return len(seeds) == 1 and None not in seeds

    def bring(
        self, number: int, momentum: dict[str, torch.Tensor], position: dict[str, Any] | None
    ) -> None:
        """As the chief, give the model as it is now to all servers.

        Args:
            number: of the round that opens.
            momentum: of the outer optimizer, by parameter; what is not there is 0.
            position: what a worker that comes in needs besides parameters.
        """
        layout, mirror = self._attached()
        self._base.copy_(mirror.gather())
        self._momentum = torch.zeros(layout.num_outer if self.options.momentum else 0)
        for name, view in self.momentum.items():
            if name in momentum and momentum[name].shape == view.shape:
                view.copy_(momentum[name])
        self.round, self._seed = number, uuid.uuid4().hex
        self._position = {"round": number, **(position or {})}
        deadline = Deadline(self.timeout)
        for link in self.links:
            try:
                self._seed_server(link, expected=[])
            except TrainkitError:
                raise
            except OSError as reason:
                log.debug("%s is lost: %s", link.name, reason)
                self._reconnect(link, deadline)  # which brings them too

    def join(self) -> dict[str, Any]:
        """Come in with the round that is next, and take its parameters.

        Returns:
            The position in the data that goes with them, as a worker gave it; empty if none did.
        """
        self._attached()
        deadline = Deadline(self.timeout)
        first = self._joined(self.links[0], None, deadline)
        self.round, self._seed = first.round, first.meta["seed"]
        self._call, self._together = first.meta["call"], first.meta["together"]
        self._adopt(first.meta)
        self._take_state(self.links[0], first)
        for link in self.links[1:]:
            self._take_state(link, self._joined(link, self.round, deadline))
        self._scatter()
        self.begun = True
        position: dict[str, Any] = first.meta["position"]
        self._position = position
        return position if "step" in position else {}

    def _adopt(self, meta: dict[str, Any]) -> None:
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

    def step_done(self) -> bool:
        """Count an optimizer step; ends the round if it was the last of it."""
        self.local_steps += 1
        if self.local_steps < self.sync_every:
            return False
        self.synchronize()
        return True

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
        for link, delta in zip(self.links, deltas, strict=True):
            self._take_outcome(link, delta, deadline)
        self.round += 1
        self._scatter()
        self.rounds_done += 1
        waited = time.monotonic() - began
        self.seconds_waited += waited
        self.longest_wait = max(self.longest_wait, waited)

    @property
    def over(self) -> bool:
        """Whether a server has said that the chief is done."""
        return any(link.over for link in self.links)

    def fall_back(self) -> None:
        """Give the model the parameters of the round's start, and forget the steps since."""
        if self.begun:
            self._scatter()

    def tell_position(self, position: dict[str, Any]) -> None:
        """Say where in the data the round begins, for workers that come in with it."""
        self._position = {"round": self.round, **position}
        link = self.links[0]
        try:
            link.send(Kind.POSITION, round=self.round, meta=self._position)
        except OSError as reason:
            log.debug("%s: %s; the next round mends it", link.name, reason)

    def gather(
        self, name: str, value: memoryview, timeout: float | None = None
    ) -> dict[int, memoryview]:
        """Give a small value and get those of all workers that are there, by rank.

        Raises:
            DeadlineError: some did not come within ``timeout`` seconds; names them.
        """
        deadline = Deadline(self.timeout if timeout is None else timeout)
        for link in self.links:
            self._try(link, partial(link.send, Kind.PARK))
        first = self.links[0]
        while True:
            try:
                meta = {"call": self._call, "name": name}
                first.send(Kind.GATHER, meta=meta, payloads=(value,))
                frame = first.receive(Kind.GATHERED, deadline=deadline)
                break
            except TrainkitError:
                raise
            except OSError as reason:
                state = self._rejoin(first, reason)
                self._call = state.meta["call"]
        self._call += 1
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
        for link in self.links:
            try:
                link.send(Kind.LEAVE, meta=meta)
                # Until it is heard: a connection that is closed with something unread in it may
                # take with it what the server has not read yet.
                while link.receive(Kind.BYE, Kind.ROUND, Kind.LATE).kind is not Kind.BYE:
                    pass
            except (OSError, SystemExit, TrainkitError) as reason:
                log.debug("%s: %s", link.name, reason)
        self.hang_up()

    def hang_up(self) -> None:
        """Close all connections; the servers take this worker for lost."""
        for link in self.links:
            link.close()

    # -- one round ------------------------------------------------------------------------------

    def _push(self) -> list[memoryview]:
        _, mirror = self._attached()
        delta = torch.sub(self._base, mirror.gather())
        if self.options.wire == "bf16":
            delta = delta.to(torch.bfloat16)
        deltas = [as_bytes(delta[begin:end]) for begin, end in self._spans]
        # To all servers before any answer is awaited: each of them waits for all workers.
        for link, part in zip(self.links, deltas, strict=True):
            try:
                link.send(Kind.PUSH, round=self.round, payloads=(part,))
            except OSError as reason:
                log.warning("%s is lost: %s", link.name, reason)
        return deltas

    def _take_outcome(self, link: ServerLink, delta: memoryview, deadline: Deadline | None) -> None:
        while True:
            try:
                frame = link.receive(Kind.ROUND, Kind.LATE, deadline=deadline)
            except TrainkitError:
                raise
            except OSError as reason:
                frame = self._rejoin(link, reason, deadline)
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
            if frame.kind is Kind.ROUND:
                self._take_round(link, frame)
            else:
                log.warning(
                    "round %d was over before this worker's part reached %s: what it learnt in "
                    "it does not count there",
                    self.round,
                    link.name,
                )
                self._take_state(link, frame)
            return

    def _take_round(self, link: ServerLink, frame: Frame) -> None:
        begin, end = self._spans[link.index]
        wire = self.options.wire
        split = (end - begin) * WIRES[wire].itemsize
        news = as_tensor(frame.payload[:split], wire)
        if wire == "bf16":
            self._base[begin:end].add_(news)
        else:
            self._base[begin:end].copy_(news)
        self._keep_momentum(link, frame.payload[split:])
        self.ranks = frame.meta["ranks"]

    def _take_state(self, link: ServerLink, frame: Frame) -> None:
        begin, end = self._spans[link.index]
        split = (end - begin) * 4
        self._base[begin:end].copy_(as_tensor(frame.payload[:split]))
        self._keep_momentum(link, frame.payload[split:])

    def _keep_momentum(self, link: ServerLink, payload: memoryview) -> None:
        """Of the chief, whom the servers send it."""
        layout, _ = self._attached()
        if not len(payload):
            return
        if not self._momentum.numel():
            self._momentum = torch.zeros(layout.num_outer)
        begin, end = self._spans[link.index]
        outer = layout.outer_part((begin, end))
        self._momentum[begin : begin + outer].copy_(as_tensor(payload))

    def _scatter(self) -> None:
        _, mirror = self._attached()
        mirror.scatter(self._base)
        self.local_steps = 0

    # -- connections ----------------------------------------------------------------------------

    def _joined(self, link: ServerLink, earliest: int | None, deadline: Deadline) -> Frame:
        """Ask to be let in by one server, and return what it then has."""
        while True:
            try:
                return self._ask_in(link, earliest, deadline)
            except TrainkitError:
                raise
            except OSError as reason:
                log.warning("%s is lost: %s", link.name, reason)
                self._reconnect(link, deadline)

    def _ask_in(self, link: ServerLink, earliest: int | None, deadline: Deadline | None) -> Frame:
        layout, _ = self._attached()
        meta = {
            "earliest": earliest,
            "together": [] if self.begun else self._together,
            "seed": self._seed,
            "fingerprint": layout.fingerprint,
            "keeper": self.is_chief,
        }
        link.send(Kind.JOIN, meta=meta)
        return link.receive(Kind.STATE, deadline=deadline)

    def _rejoin(self, link: ServerLink, reason: OSError, deadline: Deadline | None = None) -> Frame:
        """Come back to a server after the connection was lost, or the server itself."""
        log.warning("%s is lost (%s): waiting until it is back", link.name, reason)
        deadline = deadline or Deadline(self.timeout)
        while True:
            self._reconnect(link, deadline)
            try:
                state = self._ask_in(link, self.round, deadline)
            except TrainkitError:
                raise
            except OSError as again:
                log.debug("%s is lost again: %s", link.name, again)
                continue
            log.info("%s is back, at round %d", link.name, state.round)
            return state

    def _reconnect(self, link: ServerLink, deadline: Deadline) -> None:
        while True:
            link.connect(deadline)
            if not self.is_chief or self._seed is None or link.welcome["seed"] is not None:
                return
            # A server that has lost its memory gets it back from the chief's.
            others = self.ranks or self._together
            try:
                self._seed_server(link, expected=others)
            except TrainkitError:
                raise
            except OSError:
                continue
            log.info("%s had no parameters: given those of round %d", link.name, self.round)
            return

    def _seed_server(self, link: ServerLink, *, expected: list[int]) -> None:
        layout, _ = self._attached()
        begin, end = self._spans[link.index]
        outer = layout.outer_part((begin, end))
        payloads = [as_bytes(self._base[begin:end])]
        if self._momentum.numel():
            payloads.append(as_bytes(self._momentum[begin : begin + outer]))
        meta = {
            "seed": self._seed,
            "fingerprint": layout.fingerprint,
            "size": end - begin,
            "num_outer": outer,
            "outer": self.options.dump(),
            "position": self._position,
            "expected": expected,
            "begun": self.begun,
            "sync_every": self.sync_every,
        }
        link.send(Kind.SEED, round=self.round, meta=meta, payloads=tuple(payloads))
        link.receive(Kind.OK)

    def _try(self, link: ServerLink, act: Callable[[], object]) -> None:
        """Do it, connecting again as often as it takes within the time."""
        deadline = Deadline(self.timeout)
        while True:
            try:
                act()
                return
            except TrainkitError:
                raise
            except OSError as reason:
                log.debug("%s is lost: %s", link.name, reason)
                self._reconnect(link, deadline)

    def _attached(self) -> tuple[FlatLayout, Mirror]:
        if self._layout is None or self._mirror is None:
            raise AssertionError("no model was set up")  # a bug of ours
        return self._layout, self._mirror
