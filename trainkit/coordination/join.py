"""How ranks find each other in a store that may hold an earlier round's keys.

A launcher's store outlives the ranks of a failed attempt, so what it holds may be stale:
under torchrun with gloo a restart in place fails about every second time, because new ranks
read addresses of dead ones. Nothing in a rank's environment tells rounds apart for certain
(the restart count stays the same when only the membership changes). So the ranks agree on a
fresh prefix by greeting: each rank writes an identity of its own, rank 0 answers to that very
identity with the prefix of this round, the rank confirms, and rank 0 opens the round once all
have confirmed. A stale greeting is answered too, and nobody confirms.
"""

import contextlib
import json
import os
import socket
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from trainkit.coordination.store import Store
from trainkit.errors import DeadlineError, EnvironmentFaultError, RetryableError
from trainkit.waiting import Deadline, wait_until

__all__ = ["Greeting", "join"]

_LAST_WORDS = 3.0
"""Seconds in which a rank that is there reads why it is refused."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a rank says of itself when it joins."""

    identity: str
    world_size: int
    host: str
    pid: int

    @classmethod
    def of_this_process(cls, world_size: int) -> "Greeting":
        """The greeting of this process, with a fresh identity."""
        return cls(uuid.uuid4().hex, world_size, socket.gethostname(), os.getpid())

    def dump(self) -> bytes:
        """As bytes for the store."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def load(cls, payload: bytes) -> "Greeting":
        """From the bytes of ``dump``."""
        return cls(**json.loads(payload))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def join(store: Store, rank: int, world_size: int, deadline: Deadline) -> str:
    """Meet the other ranks and agree on a key prefix that no earlier round has used.

    Args:
        store: shared by all ranks; may hold keys of earlier rounds.
        rank: of this process.
        world_size: as this process believes it to be.
        deadline: when to give up.

    Returns:
        The prefix, the same on all ranks of this round and on no other.

    Raises:
        DeadlineError: names the ranks that did not come.
        EnvironmentFaultError: ranks disagree about the world size, or two processes claim
            the same rank.
    """
    me = Greeting.of_this_process(world_size)
    store.set(f"join/greeting/{rank}", me.dump())
    store.add("join/events", 1)
    if rank == 0:
        return _receive(store, me, deadline)
    return _be_received(store, rank, me, deadline)


class _Pauses:
    """Seconds between two looks: few while ranks are just arriving, and more of them for many.

    The store's own ``wait`` does not know how many ranks ask.
    """

    def __init__(self, world_size: int) -> None:
        self._first = min(0.1, max(0.0005, world_size * 5e-5))  # the store serves all of them
        self._next = self._first

    def shorten(self) -> None:
        """Something has moved, so the next step will not be long in coming."""
        self._next = self._first

    def __iter__(self) -> Iterator[float]:
        return self

    def __next__(self) -> float:
        pause = self._next
        self._next = min(0.5, pause * 1.2)
        return pause


def _receive(store: Store, me: Greeting, deadline: Deadline) -> str:
    """Rank 0: answer every greeting until all ranks have confirmed this round."""
    round_id = f"round-{me.identity}"
    waiting = set(range(1, me.world_size))
    answered: dict[int, str] = {}
    refused: dict[int, str] = {}
    seen_events = -1
    pauses = _Pauses(me.world_size)

    def all_confirmed() -> bool:
        nonlocal seen_events
        events = store.add("join/events", 0)
        if events == seen_events and not refused:
            return not waiting
        if events != seen_events:
            pauses.shorten()
        seen_events = events
        for rank in sorted(waiting):
            payload = store.get(f"join/greeting/{rank}")
            if payload is None:
                continue
            guest = Greeting.load(payload)
            if guest.world_size != me.world_size:
                refused[rank] = _refuse(me, rank, guest, store)
                continue
            if answered.get(rank) != guest.identity:
                answered[rank] = guest.identity
                store.set(f"join/answer/{guest.identity}", round_id.encode())
            if store.get(f"join/confirmed/{round_id}/{guest.identity}") is not None:
                waiting.discard(rank)
        return not waiting

    wait_until(
        all_confirmed,
        what=f"all {me.world_size} ranks to join at rank 0",
        whom=lambda: _absent(waiting, refused),
        deadline=deadline,
        hint="Look at the pods of the missing ranks; TRAINKIT_TIMEOUT sets the seconds to wait.",
        pauses=pauses,
    )
    store.set(f"join/open/{round_id}", b"1")
    return round_id


def _absent(waiting: set[int], refused: dict[int, str]) -> str:
    missing = "missing: rank " + ", ".join(str(rank) for rank in sorted(waiting))
    return "; ".join([missing, *(refused[rank] for rank in sorted(waiting & set(refused)))])


def _refuse(me: Greeting, rank: int, guest: Greeting, store: Store) -> str:
    """Tell a rank that believes in another world size, and fail if it is there to hear it.

    It may also be a greeting of an earlier round, of other members: then nobody hears.
    """
    problem = (
        f"ranks disagree about the world size: rank 0 ({me}) counts {me.world_size}, rank {rank} "
        f"({guest}) counts {guest.world_size}. Pods with different numbers of GPUs under "
        f"nprocPerNode: auto do this; write the number of processes a pod into the job."
    )
    store.set("join/refused/" + guest.identity, problem.encode())
    with contextlib.suppress(DeadlineError):
        wait_until(
            lambda: store.get(f"join/refusal-read/{guest.identity}") is not None,
            what=f"rank {rank} to read why it is refused",
            deadline=Deadline(_LAST_WORDS),
        )
        raise EnvironmentFaultError(problem)
    return f"rank {rank} ({guest}) of a world of {guest.world_size} does not answer"


def _be_received(store: Store, rank: int, me: Greeting, deadline: Deadline) -> str:
    """Other ranks: confirm whatever round answers to this identity, until one opens."""
    confirmed = ""
    pauses = _Pauses(me.world_size)

    def opened() -> str | None:
        nonlocal confirmed
        answer = store.get(f"join/answer/{me.identity}")
        if answer is None:
            _check_still_wanted(store, rank, me)
            return None
        if answer.decode() != confirmed:
            confirmed = answer.decode()
            store.set(f"join/confirmed/{confirmed}/{me.identity}", b"1")
            store.add("join/events", 1)
            pauses.shorten()
        return confirmed if store.get(f"join/open/{confirmed}") is not None else None

    def missing() -> str:
        ranks = range(me.world_size)
        absent = [str(r) for r in ranks if store.get(f"join/greeting/{r}") is None]
        return "missing: rank " + ", ".join(absent) if absent else "rank 0 does not answer"

    return wait_until(
        opened,
        what=f"rank {rank} to meet the other {me.world_size - 1} ranks",
        whom=missing,
        deadline=deadline,
        hint="Look at the pods of the missing ranks; TRAINKIT_TIMEOUT sets the seconds to wait.",
        pauses=pauses,
    )


def _check_still_wanted(store: Store, rank: int, me: Greeting) -> None:
    refusal = store.get("join/refused/" + me.identity)
    if refusal is not None:
        store.set(f"join/refusal-read/{me.identity}", b"1")
        store.add("join/events", 1)
        raise EnvironmentFaultError(refusal.decode())
    payload = store.get(f"join/greeting/{rank}")
    if payload is None:
        return
    holder = Greeting.load(payload)
    if holder.identity != me.identity:
        raise RetryableError(
            f"two processes claim rank {rank}: {holder} came after {me}. If both belong to this "
            f"job, its RANK variables are wrong; if this one is left over from a restart, its "
            f"end is in order."
        )
