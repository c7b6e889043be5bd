"""A parameter server: one thread, one loop, one shard, and workers that come and go."""

import logging
import selectors
import socket
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from trainkit.errors import EnvironmentFaultError
from trainkit.strategies.torch.local_sgd.connection import Connection
from trainkit.strategies.torch.local_sgd.control import Gatherings, StopVote
from trainkit.strategies.torch.local_sgd.frames import (
    EMPTY,
    Frame,
    Kind,
    ProtocolError,
    new_buffer,
)
from trainkit.strategies.torch.local_sgd.rounds import Rounds
from trainkit.strategies.torch.local_sgd.shard import (
    WIRES,
    Shard,
    as_bytes,
    as_tensor,
    options_from,
)

__all__ = ["ShardServer", "listen"]

log = logging.getLogger(__name__)

_MOST = 1 << 42
"""Bytes of a payload; more than any host has memory for is a mistake."""
_MOST_SMALL = 1 << 30
"""Bytes that one worker may give to a gathering."""
_SET_BACK = (
    "the job was set back to its last checkpoint, since the chief and a server were lost together; "
    "this worker has newer parameters. Started again, it comes in where the job is"
)
_SIGN_OF_LIFE = 2.0
"""Seconds between two signs of life to those who wait."""
_FOR_POSITION = 1.0
"""Seconds that a worker which comes in waits for the position in the data that goes with the
parameters it gets: the others send it a moment after they got theirs."""


def listen(port: int) -> socket.socket:
    """Listen for workers on all addresses of this host.

    Raises:
        EnvironmentFaultError: the port is taken, or may not be used.
    """
    if socket.has_dualstack_ipv6():
        # A kernel that knows IPv6 may still have it turned off.
        with suppress(OSError):
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128
            )
    try:
        return socket.create_server(("", port), backlog=128)
    except OSError as reason:
        from trainkit.coordination.network import port_holder

        raise EnvironmentFaultError(
            f"this parameter server cannot listen on port {port}: {reason.strerror} "
            f"({port_holder(port)} has it). The port comes from the cluster's addresses of ps."
        ) from None


class ShardServer:
    """Serves one shard until the job is over.

    ``turn`` does what is there to do; whoever calls it decides when to stop.
    """

    def __init__(self, listener: socket.socket, index: int, patience: float) -> None:
        """Begin to accept workers.

        Args:
            listener: a listening socket; closed by ``close``.
            index: which of the servers this is. Number 0 also has gatherings and the vote.
            patience: seconds that a member may stay behind the first one in a round.
        """
        listener.setblocking(False)
        self._listener = listener
        self._index = index
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._connections: set[Connection] = set()
        self._workers: dict[int, Connection] = {}
        self._shard: Shard | None = None
        self._seed: dict[str, Any] = {}
        self._position: dict[str, Any] = {"round": -1}
        self._arrivals: dict[int, float] = {}
        self._told = time.monotonic()
        self._returned = 0
        self.rounds = Rounds(1, patience)
        self.gatherings = Gatherings()
        self.vote = StopVote()
        self.over = False
        """Whether the chief has said that the job is done."""
        self.empty_since = time.monotonic()
        """Since when there has been no worker."""
        self._handlers: dict[Kind, Callable[[Connection, Frame], None]] = {
            Kind.HELLO: self._hello,
            Kind.SEED: self._take_seed,
            Kind.JOIN: self._join,
            Kind.PUSH: self._push,
            Kind.PARK: self._park,
            Kind.POSITION: self._take_position,
            Kind.GATHER: self._gather,
            Kind.CONTROL: self._control,
            Kind.LEAVE: self._leave,
        }

    @property
    def workers(self) -> list[int]:
        """Ranks that are connected."""
        return sorted(self._workers)

    def wake_by(self, descriptor: int) -> None:
        """Have ``turn`` return soon after ``descriptor`` becomes readable."""
        self._selector.register(descriptor, selectors.EVENT_READ)

    def turn(self, seconds: float) -> None:
        """Wait ``seconds`` at most for something to do, and do it."""
        for key, events in self._selector.select(seconds):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.data, Connection):
                self._serve(key.data, events)
        self._advance(time.monotonic())
        for connection in list(self._connections):
            if connection.is_sending:
                self._flush(connection)

    def dismiss(self) -> None:
        """Tell all that the job is over."""
        for connection in list(self._connections):
            connection.queue(Kind.OVER)
            self._flush(connection)

    def close(self) -> None:
        """Close all connections."""
        for connection in list(self._connections):
            self._drop(connection)
        self._selector.close()
        self._listener.close()

    # -- connections ----------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            accepted, address = self._listener.accept()
        except OSError:
            return  # gone again before its turn came
        connection = Connection(accepted, str(address[0]), self._place)
        self._connections.add(connection)
        self._selector.register(accepted, selectors.EVENT_READ, connection)

    def _serve(self, connection: Connection, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                for frame in connection.receive():
                    if connection not in self._connections:
                        return  # refused by an answer to the frame before
                    handler = self._handlers.get(frame.kind)
                    if handler is None:
                        raise ProtocolError(f"{frame.kind.name} is nothing to ask a server")
                    handler(connection, frame)
            if events & selectors.EVENT_WRITE:
                self._flush(connection)
        except ProtocolError as reason:
            log.warning("a connection from %s is closed: %s", connection.address, reason)
            self._refuse(connection, str(reason), final=True)
        except OSError as reason:
            self._lose(connection, str(reason))
        except (KeyError, TypeError, ValueError) as reason:
            log.warning("a connection from %s is closed: %r", connection.address, reason)
            self._refuse(connection, f"a request that makes no sense: {reason!r}", final=True)

    def _flush(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        try:
            connection.send()
        except OSError as reason:
            self._lose(connection, str(reason))
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.is_sending else 0)
        self._selector.modify(connection.socket, wanted, connection)

    def _refuse(self, connection: Connection, words: str, *, final: bool = False) -> None:
        """Say what is wrong and hang up; ``final``: another try would end in the same way."""
        connection.queue(Kind.FAULT, meta={"message": words, "final": final})
        self._flush(connection)
        self._lose(connection, words)

    def _lose(self, connection: Connection, why: str) -> None:
        rank = connection.rank
        if rank is not None and self._workers.get(rank) is connection:
            if rank in self.rounds.members:
                log.warning(
                    "worker %d is gone (%s): round %s goes on without it",
                    rank,
                    why,
                    self.rounds.round,
                )
            self._forget(rank)
        self._drop(connection)

    def _forget(self, rank: int) -> None:
        self._workers.pop(rank, None)
        self.rounds.leave(rank)
        if not self._workers:
            self.empty_since = time.monotonic()

    def _drop(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.discard(connection)
            self._selector.unregister(connection.socket)
            connection.close()

    def _place(self, connection: Connection, kind: Kind, number: int, size: int) -> memoryview:
        """Memory for a payload that is about to come."""
        if kind is Kind.PUSH and self._shard is not None:
            expected = self._shard.size * WIRES[self._shard.options.wire].itemsize
            if size != expected:
                raise ProtocolError(f"a push of {size} bytes, expected {expected}")
            return new_buffer(size)
        most = {Kind.SEED: _MOST, Kind.GATHER: _MOST_SMALL}.get(kind, 0)
        if connection.rank is None or size > most:
            raise ProtocolError(f"{kind.name} with a payload of {size} bytes")
        return new_buffer(size)

    # -- what workers ask -----------------------------------------------------------------------

    def _hello(self, connection: Connection, frame: Frame) -> None:
        meta = frame.meta
        if meta["server"] != self._index:
            raise ProtocolError(
                f"this is parameter server {self._index}, and the worker took it for "
                f"{meta['server']}: do all pods have the same list of ps?"
            )
        if meta["member"]:
            rank, world_size = int(frame.rank), int(meta["world_size"])
            if self._workers and world_size != self.rounds.world_size:
                raise ProtocolError(
                    f"worker {rank} is of a job of {world_size} workers, and worker(s) "
                    f"{self.workers} of one of {self.rounds.world_size}"
                )
            self.rounds.world_size = world_size
            before = self._workers.get(rank)
            if before is not None and before is not connection:
                self._lose(before, "it came again")
            connection.rank = rank
            self._workers[rank] = connection
        welcome = {
            "seed": self._seed.get("seed"),
            "fingerprint": self._seed.get("fingerprint"),
            "over": self.over,
        }
        connection.queue(Kind.WELCOME, round=self._round, meta=welcome)

    def _take_seed(self, connection: Connection, frame: Frame) -> None:
        meta, payload = frame.meta, frame.payload
        if self._shard is not None:
            # A chief that has lost its memory while another server lost its own: all begin again
            # with what was saved. Who is in with newer parameters has to come in anew.
            for rank in [rank for rank in self.rounds.members if rank != connection.rank]:
                self._refuse(self._workers[rank], _SET_BACK)
            self.rounds = Rounds(self.rounds.world_size, self.rounds.patience)
            self.gatherings = Gatherings()
            self._arrivals.clear()
        size, num_outer = int(meta["size"]), int(meta["num_outer"])
        options = options_from(meta["outer"])
        moving = len(payload) - 4 * size
        if moving not in (0, 4 * num_outer) or not 0 <= num_outer <= size:
            raise ProtocolError(f"parameters of {len(payload)} bytes for {size} numbers")
        momentum = as_tensor(payload[4 * size :]) if moving else None
        self._shard = Shard(as_tensor(payload[: 4 * size]), num_outer, options, momentum)
        self._seed = {key: meta[key] for key in ("seed", "fingerprint", "outer", "sync_every")}
        self._position = meta["position"] or {"round": frame.round}
        now = time.monotonic()
        self.rounds.seed(frame.round, now, expected=meta["expected"], begun=meta["begun"])
        for rank, other in list(self._workers.items()):
            if other.joining is not None and self._fits(other):
                # who waits for the first parameters goes on waiting
                self.rounds.ask(rank, now, earliest=other.joining["earliest"])
        connection.queue(Kind.OK)

    def _join(self, connection: Connection, frame: Frame) -> None:
        if connection.rank is None:
            raise ProtocolError("JOIN before HELLO")
        if self.over:
            connection.queue(Kind.OVER)
            return
        if self.vote.hold:
            self._refuse(connection, "the job is being stopped")
            return
        meta, now = frame.meta, time.monotonic()
        connection.keeper = bool(meta["keeper"])
        earliest = meta["earliest"]
        connection.joining = {key: meta[key] for key in ("fingerprint", "earliest", "seed")}
        if self._shard is not None and not self._fits(connection):
            return
        self.rounds.ask(connection.rank, now, earliest=earliest)
        if earliest is not None and earliest == self.rounds.round:
            self.rounds.expect(meta["together"], now)

    def _push(self, connection: Connection, frame: Frame) -> None:
        rank, shard = connection.rank, self._shard
        if rank is None or shard is None or rank not in self.rounds.members:
            raise ProtocolError("PUSH from a worker that is not in")
        if frame.round > self._round + 1:
            raise ProtocolError(f"PUSH of round {frame.round} while round {self._round} is open")
        payload = frame.payload if shard.size else EMPTY
        if not self.rounds.push(rank, frame.round, payload, time.monotonic()):
            self._send_state(connection, Kind.LATE)

    def _park(self, connection: Connection, frame: Frame) -> None:
        if connection.rank is not None:
            self.rounds.park(connection.rank)

    def _take_position(self, connection: Connection, frame: Frame) -> None:
        if frame.round >= self._position["round"]:
            self._position = {**frame.meta, "round": frame.round}

    def _gather(self, connection: Connection, frame: Frame) -> None:
        rank, meta = connection.rank, frame.meta
        if rank is None:
            raise ProtocolError("GATHER before HELLO")
        if self.rounds.begun and rank not in self.rounds.members:
            # What the others have passed long ago is not repeated for one that was started again.
            alone = {"ranks": [rank], "sizes": [len(frame.payload)]}
            connection.queue(Kind.GATHERED, meta=alone, payloads=(frame.payload,))
            return
        fault = self.gatherings.give(rank, meta["call"], meta["name"], frame.payload)
        if fault is not None:
            self._refuse(connection, fault)

    def _control(self, connection: Connection, frame: Frame) -> None:
        meta = frame.meta
        answer = self.vote.answer(
            meta["what"], frame.rank, meta.get("entered"), lambda: self.rounds.members
        )
        connection.queue(Kind.ANSWER, meta={**answer, "over": self.over})

    def _leave(self, connection: Connection, frame: Frame) -> None:
        self.over = self.over or bool(frame.meta.get("done"))
        self.vote.hold = self.vote.hold or bool(frame.meta.get("stopping"))
        connection.queue(Kind.BYE)
        if connection.rank is not None and self._workers.get(connection.rank) is connection:
            self._forget(connection.rank)
            connection.rank = None

    # -- what follows from it -------------------------------------------------------------------

    def _advance(self, now: float) -> None:
        for rank in self.rounds.overdue(now):
            words = (
                f"worker {rank} did not bring round {self._round} within "
                f"{self.rounds.patience:.0f} s after the first one did, and was given up. Started "
                f"again, it comes in with the next round"
            )
            self._refuse(self._workers[rank], words)
        if self.rounds.is_over(now):
            self._close_round(now)
        for rank in self.rounds.admit(now):
            self._arrivals[rank] = now
        for rank in list(self._arrivals):
            waited = now - self._arrivals[rank]
            there = self._index != 0 or self._position["round"] >= self._round
            if there or waited >= _FOR_POSITION:
                self._welcome(rank)
        self._end_gathering()
        if now - self._told >= _SIGN_OF_LIFE:
            self._told = now
            self._give_signs_of_life(now)

    def _close_round(self, now: float) -> None:
        if self._shard is None:
            raise AssertionError("a round without parameters")  # a bug of ours
        contributions = self.rounds.close(now)
        sent = as_bytes(self._shard.step([*contributions.values()]))
        # Nobody who gets these views can be behind when the next round ends and changes them:
        # to push, a member must have received all of them.
        moving = as_bytes(self._shard.momentum)
        meta = {"ranks": [*contributions], "hold": self.vote.hold}
        for rank in contributions:
            connection = self._workers.get(rank)
            if connection is not None and rank in self.rounds.members:
                payloads = (sent, moving) if connection.keeper else (sent,)
                connection.queue(Kind.ROUND, round=self._round, meta=meta, payloads=payloads)

    def _welcome(self, rank: int) -> None:
        self._arrivals.pop(rank, None)
        connection = self._workers.get(rank)
        if connection is None or connection.joining is None or rank not in self.rounds.members:
            return
        connection.joining = None
        self._send_state(connection, Kind.STATE)

    def _fits(self, connection: Connection) -> bool:
        """Whether a worker that joins is of this start and has the chief's model; or refuse it."""
        if connection.joining is None:
            raise AssertionError("it does not join")  # a bug of ours
        if connection.joining["seed"] not in (None, self._seed["seed"]):
            self._refuse(connection, _SET_BACK)
            return False
        if connection.joining["fingerprint"] == self._seed["fingerprint"]:
            return True
        self._refuse(
            connection,
            f"worker {connection.rank} has another model than the chief (names, shapes or their "
            f"order differ): all workers have to set up the same model",
            final=True,
        )
        return False

    def _send_state(self, connection: Connection, kind: Kind) -> None:
        if self._shard is None:
            raise AssertionError("nothing to send")  # a bug of ours
        # Copies: this may be under way while a round ends.
        payloads = [as_bytes(self._shard.parameters.clone())]
        if connection.keeper:
            payloads.append(as_bytes(self._shard.momentum.clone()))
        meta = {
            "position": self._position,
            "call": self.gatherings.number,
            "together": sorted(self.rounds.members),
            "seed": self._seed["seed"],
            "outer": self._seed["outer"],
            "sync_every": self._seed["sync_every"],
        }
        connection.queue(kind, round=self._round, meta=meta, payloads=tuple(payloads))

    @property
    def _gathering_members(self) -> Collection[int]:
        """Who takes part in a gathering: at the start all workers of the job, then who is in."""
        begun = self.rounds.begun
        return self.rounds.members if begun else range(self.rounds.world_size)

    def _end_gathering(self) -> None:
        if not self.gatherings.given or self.gatherings.missing(self._gathering_members):
            return
        given = self.gatherings.close()
        meta = {"ranks": [*given], "sizes": [len(value) for value in given.values()]}
        for rank in given:
            connection = self._workers.get(rank)
            if connection is not None:
                connection.queue(Kind.GATHERED, meta=meta, payloads=tuple(given.values()))

    def _give_signs_of_life(self, now: float) -> None:
        gathering = self.gatherings.missing(self._gathering_members)
        absent = self.rounds.absent()
        for rank, connection in self._workers.items():
            if connection.is_sending:
                continue
            live = False
            if rank in self.gatherings.given:
                what, missing = self.gatherings.name, gathering
            elif connection.joining is not None:
                what = "parameters from the chief" if self._shard is None else "the next round"
                missing = [0] if self._shard is None and 0 not in absent else absent
                live = bool(self.rounds.members)
            elif self.rounds.waits(rank):
                what, missing = f"round {self._round}", self.rounds.missing(now)
            else:
                continue  # it trains
            connection.queue(Kind.WAITING, meta={"what": what, "missing": missing, "live": live})

    @property
    def _round(self) -> int:
        return -1 if self.rounds.round is None else self.rounds.round
