"""The way to the other ranks: a store that all share, and a communicator on it."""

import logging
import time
from pathlib import Path
from typing import Protocol, Self

from trainkit import config
from trainkit.coordination import Communicator, PrefixedStore, Store, client
from trainkit.coordination.join import join
from trainkit.coordination.meeting import job_namespace, meet_on_host, publish_port
from trainkit.errors import PeerLostError, TrainkitError
from trainkit.topology import Topology
from trainkit.waiting import Deadline, backoff, wait_until

__all__ = ["Endpoint", "RankLink", "Stores"]

log = logging.getLogger(__name__)

_ANSWERS_AGAIN = 30.0
"""Seconds until a store that is known takes one more connection."""
_GOODBYE = 30.0
"""Seconds that rank 0 keeps the store open for ranks that are still ending."""


class Endpoint(Store, Protocol):
    """A store that is reached over the network."""

    @property
    def host(self) -> str:
        """Name or address of who serves it."""
        ...

    @property
    def port(self) -> int:
        """Where it listens."""
        ...

    def close(self) -> None:
        """Hang up; who serves it ends that."""
        ...


class Stores(Protocol):
    """A kind of store: how it is served, and how it is reached."""

    def serve_store(self, port: int, deadline: Deadline) -> Endpoint:
        """Serve one on ``port`` of this host; 0 for a free one."""
        ...

    def connect_store(self, host: str, port: int, who: str, deadline: Deadline) -> Endpoint:
        """Reach the one that another process serves; ``who`` is this one, for messages."""
        ...


class RankLink:
    """This rank's connection to the store of its round, and the communicator on top.

    Rank 0 serves a store of ours, which needs no framework. Only where torchrun's agent serves
    one already is that taken, and torch with it.
    """

    def __init__(
        self, stores: Stores, store: Endpoint, prefix: str, topology: Topology, timeout: float
    ) -> None:
        """Wrap a store that the ranks have already met in; ``open`` does all of it."""
        rank, world_size = _place(topology)
        self._stores = stores
        self.store = store
        self.prefix = prefix
        self._others: list[Endpoint] = []
        self._control: Store = PrefixedStore(f"{prefix}/control", store)
        self.communicator = Communicator(self._control, rank, world_size, timeout=timeout)

    @classmethod
    def open(
        cls, topology: Topology, timeout: float, *, address: tuple[str, int] | None = None
    ) -> Self:
        """Meet the other ranks of the job.

        Args:
            topology: of this rank.
            timeout: seconds until all have to be there, and of each later call.
            address: host of rank 0 and port for the store, where the master's own port has
                another use; the topology's by default.

        Raises:
            DeadlineError: names who is missing, or which address cannot be reached.
            EnvironmentFaultError: the port is taken, or ranks disagree about the world.
        """
        rank, world_size = _place(topology)
        stores = cls._kind_of_store(topology)
        deadline, pauses = Deadline(timeout), backoff(first=0.05)
        while True:
            try:
                store, prefix = _meet(stores, topology, address, deadline)
                break
            except PeerLostError as reason:
                # Started again, this rank finds the store of a rank 0 that is just ending.
                if rank == 0 or deadline.passed:
                    raise
                log.info("%s Trying again.", reason)
                time.sleep(next(pauses))
        log.debug("rank %d of %d joined %s", rank, world_size, prefix)
        return cls(stores, store, prefix, topology, timeout)

    @staticmethod
    def _kind_of_store(topology: Topology) -> Stores:
        if _agent_serves(topology):
            from trainkit.coordination import torch as of_torch

            return of_torch
        return client

    def second_connection(self, name: str) -> Store:
        """Keys of their own on a connection of their own, for another thread.

        A connection serves one call at a time: a thread that waits on it blocks the others.
        """
        who = f"rank {self.communicator.rank}"
        # It answered a moment ago. Where it does not now, rank 0 is gone and will not come back.
        deadline = Deadline(min(self.communicator.timeout, _ANSWERS_AGAIN))
        store = self._stores.connect_store(self.store.host, self.store.port, who, deadline)
        self._others.append(store)
        return PrefixedStore(f"{self.prefix}/{name}", store)

    def arrived(self) -> None:
        """Say that this rank is connected with all others, in whatever else it uses for that."""
        self._control.add("arrived", 1)

    def await_arrivals(self) -> None:
        """Return once every rank has said that it is connected.

        gloo's way into a group takes several steps, and ends for one rank before it ends for
        another: a rank whose training is over at once must not hang up on one that is still
        connecting, which would take it for a crash.
        """
        try:
            wait_until(
                lambda: self._control.add("arrived", 0) >= self.communicator.world_size,
                what="the other ranks to connect",
                deadline=Deadline(_GOODBYE),
            )
        except TrainkitError as reason:
            log.warning("%s", reason)

    def close(self, *, failed: bool = False) -> None:
        """Leave; rank 0, which may serve the store, leaves last."""
        if not failed:
            self._say_goodbye()
        for store in (*self._others, self.store):
            store.close()

    def _say_goodbye(self) -> None:
        others = self.communicator.world_size - 1
        try:
            if self.communicator.rank != 0:
                self._control.add("goodbye", 1)
                return
            wait_until(
                lambda: self._control.add("goodbye", 0) >= others,
                what="the other ranks to end",
                deadline=Deadline(_GOODBYE),
            )
        except TrainkitError as reason:
            # The work is done and saved; a peer that does not say goodbye has its own report.
            log.warning("%s", reason)


def _meet(
    stores: Stores, topology: Topology, address: tuple[str, int] | None, deadline: Deadline
) -> tuple[Endpoint, str]:
    """The store, and the prefix of this round's keys in it."""
    store, note = _shared_store(stores, topology, address, deadline)
    try:
        return store, join(store, *_place(topology), deadline)
    except BaseException:
        store.close()
        raise
    finally:
        if note is not None:
            note.unlink(missing_ok=True)


def _shared_store(
    stores: Stores, topology: Topology, address: tuple[str, int] | None, deadline: Deadline
) -> tuple[Endpoint, Path | None]:
    """The store that all ranks can reach, and a file to remove once they have met."""
    rank, world_size = _place(topology)
    who = f"rank {rank}"
    host, port = address or (topology.master_addr, topology.master_port)
    if host is not None and port is not None:
        if rank == 0 and not _agent_serves(topology):
            return stores.serve_store(port, deadline), None
        return stores.connect_store(host, port, who, deadline), None
    if topology.local_world_size == world_size:
        namespace = job_namespace(config.environ())
        if rank == 0:
            store = stores.serve_store(0, deadline)
            return store, publish_port(namespace, store.port)
        port = meet_on_host(namespace, who=who, deadline=deadline)
        return stores.connect_store("127.0.0.1", port, who, deadline), None
    from trainkit.coordination.mpi import broadcast_address

    if rank == 0:
        store = stores.serve_store(0, deadline)
        broadcast_address(store.port)
        return store, None
    host, port = broadcast_address(None)
    return stores.connect_store(host, port, who, deadline), None


def _place(topology: Topology) -> tuple[int, int]:
    if topology.rank is None or topology.world_size is None:
        raise AssertionError(f"not a rank: {topology.summary()}")
    return topology.rank, topology.world_size


def _agent_serves(topology: Topology) -> bool:
    """Whether torchrun's agent, which outlives the ranks, serves a store for them."""
    given = config.environ().get("TORCHELASTIC_USE_AGENT_STORE")
    return topology.platform == "torchelastic" and given == "True"
