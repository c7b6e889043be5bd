"""The way to the other ranks: a store that all share, and a communicator on it."""

import logging
from pathlib import Path

import torch.distributed as dist

from trainkit import config
from trainkit.coordination import Communicator, PrefixedStore, Store
from trainkit.coordination.join import join
from trainkit.coordination.meeting import job_namespace, meet_on_host, publish_port
from trainkit.coordination.torch import TorchStore, connect_store, serve_store
from trainkit.errors import TrainkitError
from trainkit.topology import Topology
from trainkit.waiting import Deadline, wait_until

__all__ = ["RankLink"]

log = logging.getLogger(__name__)

_GOODBYE = 30.0
"""Seconds that rank 0 keeps the store open for ranks that are still ending."""


class RankLink:
    """This rank's connection to the store of its round, and the communicator on top."""

    def __init__(self, tcp: dist.TCPStore, prefix: str, topology: Topology, timeout: float) -> None:
        """Wrap a store that the ranks have already met in; ``open`` does all of it."""
        rank, world_size = _place(topology)
        self.tcp = tcp
        self.prefix = prefix
        self._control: Store = PrefixedStore(f"{prefix}/control", TorchStore(tcp))
        self.communicator = Communicator(self._control, rank, world_size, timeout=timeout)

    @classmethod
    def open(cls, topology: Topology, timeout: float) -> "RankLink":
        """Meet the other ranks of the job.

        Raises:
            DeadlineError: names who is missing, or which address cannot be reached.
            EnvironmentFaultError: the port is taken, or ranks disagree about the world.
        """
        rank, world_size = _place(topology)
        deadline = Deadline(timeout)
        tcp, note = _shared_store(topology, deadline)
        try:
            prefix = join(TorchStore(tcp), rank, world_size, deadline)
        finally:
            if note is not None:
                note.unlink(missing_ok=True)
        log.debug("rank %d of %d joined %s", rank, world_size, prefix)
        return cls(tcp, prefix, topology, timeout)

    def second_connection(self, name: str) -> Store:
        """Keys of their own on a connection of their own, for another thread.

        A connection serves one call at a time: a thread that waits on it blocks the others.
        """
        tcp = dist.TCPStore(self.tcp.host, self.tcp.port, is_master=False, wait_for_workers=False)
        return PrefixedStore(f"{self.prefix}/{name}", TorchStore(tcp))

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
        if failed:
            return
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


def _place(topology: Topology) -> tuple[int, int]:
    if topology.rank is None or topology.world_size is None:
        raise AssertionError(f"not a rank: {topology.summary()}")
    return topology.rank, topology.world_size


def _shared_store(topology: Topology, deadline: Deadline) -> tuple[dist.TCPStore, Path | None]:
    """The store that all ranks can reach, and a file to remove once they have met."""
    rank, world_size = _place(topology)
    who = f"rank {rank}"
    host, port = topology.master_addr, topology.master_port
    environ = config.environ()
    if host is not None and port is not None:
        agent_serves = (
            topology.platform == "torchelastic"
            and environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        )
        if rank == 0 and not agent_serves:
            return serve_store(port, deadline), None
        return connect_store(host, port, who, deadline), None
    if topology.local_world_size == world_size:
        namespace = job_namespace(environ)
        if rank == 0:
            tcp = serve_store(0, deadline)
            return tcp, publish_port(namespace, tcp.port)
        port = meet_on_host(namespace, who=who, deadline=deadline)
        return connect_store("127.0.0.1", port, who, deadline), None
    from trainkit.coordination.mpi import broadcast_address

    if rank == 0:
        tcp = serve_store(0, deadline)
        broadcast_address(tcp.port)
        return tcp, None
    host, port = broadcast_address(None)
    return connect_store(host, port, who, deadline), None
