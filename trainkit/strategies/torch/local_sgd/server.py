"""A parameter server: what it answers to workers that come and go, and when it ends a round."""

import logging
import socket
import time
from collections.abc import Callable
from typing import Any

from trainkit.strategies.torch.local_sgd.connection import Connection
from trainkit.strategies.torch.local_sgd.frames import (
    EMPTY,
    Frame,
    Kind,
    ProtocolError,
)
from trainkit.strategies.torch.local_sgd.gathering import Gatherings
from trainkit.strategies.torch.local_sgd.holding import SET_BACK, Holding
from trainkit.strategies.torch.local_sgd.loop import ConnectionLoop
from trainkit.strategies.torch.local_sgd.rounds import Rounds
from trainkit.strategies.torch.local_sgd.shard import as_bytes
from trainkit.strategies.torch.local_sgd.vote import StopVote

__all__ = ["ShardServer"]

log = logging.getLogger(__name__)

_SIGN_OF_LIFE = 2.0
"""Seconds between two signs of life to those who wait."""
_FOR_POSITION = 1.0
"""Seconds that a worker which comes in waits for the position in the data that goes with the
parameters it gets: the others send it a moment after they got theirs."""


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
        self._index = index
        self._held = Holding()
        self._loop = ConnectionLoop(
            listener, place=self._held.room, heard=self._answer, lost=self._lost
        )
        self._workers: dict[int, Connection] = {}
        self._processes: dict[int, str] = {}
        self._replaced: set[str] = set()
        self._arrivals: dict[int, float] = {}
        self._told = time.monotonic()
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

    @property
    def is_observed(self) -> bool:
        """Whether somebody is connected who only wants to hear of the job's end."""
        return any(connection.observes for connection in self._loop.connections)

    def wake_by(self, descriptor: int) -> None:
        """Have ``turn`` return soon after ``descriptor`` becomes readable."""
        self._loop.wake_by(descriptor)

    def turn(self, seconds: float) -> None:
        """Wait ``seconds`` at most for something to do, and do it."""
        self._loop.receive(seconds)
        self._advance(time.monotonic())
        self._loop.send()

    def dismiss(self) -> None:
        """Tell all that the job is over."""
        for connection in list(self._loop.connections):
            connection.queue(Kind.OVER)
            self._loop.flush(connection)

    def close(self) -> None:
        """Close all connections."""
        self._loop.close()

    # -- connections ----------------------------------------------------------------------------

    def _answer(self, connection: Connection, frame: Frame) -> None:
        handler = self._handlers.get(frame.kind)
        if handler is None:
            raise ProtocolError(f"{frame.kind.name} is nothing to ask a server")
        handler(connection, frame)

    def _lost(self, connection: Connection, why: str) -> None:
        rank = connection.rank
        if rank is None or self._workers.get(rank) is not connection:
            return
        if rank in self.rounds.members:
            log.warning(
                "worker %d is gone (%s): round %s goes on without it", rank, why, self.rounds.round
            )
        self._forget(rank)

    def _forget(self, rank: int) -> None:
        self._workers.pop(rank, None)
        self.rounds.leave(rank)
        if not self._workers:
            self.empty_since = time.monotonic()

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
            if not self._is_newest(rank, meta["process"]):
                words = (
                    f"another process has come as worker {rank} since, so this one does not count "
                    f"any more. Are there two pods with one index?"
                )
                self._loop.refuse(connection, words)
                return
            before = self._workers.get(rank)
            if before is not None and before is not connection:
                self._loop.end(before, "it came again")
            connection.rank = rank
            self._workers[rank] = connection
        welcome = {**self._held.greeting, "over": self.over}
        connection.queue(Kind.WELCOME, round=self._round, meta=welcome)

    def _is_newest(self, rank: int, process: str) -> bool:
        """Whether no other process of this rank has come later: two would take turns for ever."""
        if process in self._replaced:
            return False
        before = self._processes.setdefault(rank, process)
        if before != process:
            self._replaced.add(before)
            self._processes[rank] = process
        return True

    def _take_seed(self, connection: Connection, frame: Frame) -> None:
        if self._held.shard is not None:
            # A chief that has lost its memory while another server lost its own: all begin again
            # with what was saved. Who is in with newer parameters has to come in anew.
            for rank in [rank for rank in self.rounds.members if rank != connection.rank]:
                self._loop.refuse(self._workers[rank], SET_BACK)
            self.rounds = Rounds(self.rounds.world_size, self.rounds.patience)
            self.gatherings = Gatherings()
            self._arrivals.clear()
        self._held.take(frame)
        meta, now = frame.meta, time.monotonic()
        self.gatherings.number = max(self.gatherings.number, int(meta["call"]))
        self.rounds.seed(
            frame.round,
            now,
            expected=meta["expected"],
            begun=meta["begun"],
            within=float(meta["took"]),
        )
        for rank, other in list(self._workers.items()):
            if other.joining is not None and self._fits(other, other.joining):
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
            self._loop.refuse(connection, "the job is being stopped")
            return
        meta, now = frame.meta, time.monotonic()
        connection.keeper = bool(meta["keeper"])
        earliest = meta["earliest"]
        connection.joining = {key: meta[key] for key in ("fingerprint", "earliest", "seed")}
        if self._held.shard is not None and not self._fits(connection, connection.joining):
            return
        self.rounds.ask(connection.rank, now, earliest=earliest)
        if earliest is not None and earliest == self.rounds.round:
            self.rounds.expect(meta["together"], now)

    def _fits(self, connection: Connection, joining: dict[str, Any]) -> bool:
        """Whether a worker that joins may be let in; or refuse it."""
        misfit = self._held.misfit(connection.rank, joining)
        if misfit is not None:
            words, final = misfit
            self._loop.refuse(connection, words, final=final)
        return misfit is None

    def _push(self, connection: Connection, frame: Frame) -> None:
        rank, shard = connection.rank, self._held.shard
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
        self._held.take_position(frame)

    def _gather(self, connection: Connection, frame: Frame) -> None:
        fault = self.gatherings.take(connection, frame, self.rounds)
        if fault is not None:
            self._loop.refuse(connection, fault)

    def _control(self, connection: Connection, frame: Frame) -> None:
        meta = frame.meta
        connection.observes = connection.observes or meta["what"] == "observe"
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
            self._loop.refuse(self._workers[rank], words)
        if self.rounds.is_over(now):
            self._close_round(now)
        for rank in self.rounds.admit(now):
            self._arrivals[rank] = now
        for rank in list(self._arrivals):
            waited = now - self._arrivals[rank]
            there = self._index != 0 or self._held.position["round"] >= self._round
            if there or waited >= _FOR_POSITION:
                self._welcome(rank)
        self.gatherings.advance(self.rounds, self._workers)
        if now - self._told >= _SIGN_OF_LIFE:
            self._told = now
            self._give_signs_of_life(now)

    def _close_round(self, now: float) -> None:
        shard = self._held.shard
        if shard is None:
            raise AssertionError("a round without parameters")  # a bug of ours
        contributions = self.rounds.close(now)
        sent = as_bytes(shard.step([*contributions.values()]))
        # Nobody who gets these views can be behind when the next round ends and changes them:
        # to push, a member must have received all of them.
        moving = as_bytes(shard.momentum)
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

    def _send_state(self, connection: Connection, kind: Kind) -> None:
        held, payloads = self._held.state(keeper=connection.keeper)
        there = {"call": self.gatherings.number, "together": sorted(self.rounds.members)}
        connection.queue(kind, round=self._round, meta={**held, **there}, payloads=payloads)

    def _give_signs_of_life(self, now: float) -> None:
        gathering = self.gatherings.missing(self.rounds)
        absent = self.rounds.absent()
        for rank, connection in self._workers.items():
            if connection.is_sending:
                continue
            live = False
            if rank in self.gatherings.given:
                what, missing = self.gatherings.name, gathering
            elif connection.joining is not None:
                first = self._held.shard is None
                what = "parameters from the chief" if first else "the next round"
                missing = [0] if first and 0 not in absent else absent
                live = bool(self.rounds.members)
            elif self.rounds.waits(rank):
                what, missing = f"round {self._round}", self.rounds.missing(now)
            else:
                continue  # it trains
            connection.queue(Kind.WAITING, meta={"what": what, "missing": missing, "live": live})

    @property
    def _round(self) -> int:
        return -1 if self.rounds.round is None else self.rounds.round
