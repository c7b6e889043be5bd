"""Where launchers meet: our own static rendezvous, and a fresh store for each round of any.

Torch's agent keeps one store for all rounds and ranks read addresses of dead ones in it: in
place restarts with gloo fail about every second time (pytorch/pytorch#167288 is the same with
NCCL). Here rank 0's launcher serves a new store to the ranks in each round. Torch's static
rendezvous also hands out the same world whoever is there; ours knows which launchers are new.
"""

import json
import logging
import socket
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
)
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo

from trainkit.coordination.network import await_address, port_holder
from trainkit.errors import EnvironmentFaultError
from trainkit.waiting import Deadline, backoff, wait_until

__all__ = ["FreshStores", "StaticRendezvous", "serve"]

log = logging.getLogger(__name__)

_BEAT = 1.0
"""Seconds between two signs of life of a launcher."""
_HINT = "Look at the pods of the missing nodes; TRAINKIT_TIMEOUT sets the seconds to wait."
_SILENT = 3.0
"""Seconds without one after which a launcher is taken for lost."""


def serve(port: int, timeout: float) -> dist.TCPStore:
    """Serve a store on ``port`` of this host; 0 takes a free one.

    Raises:
        EnvironmentFaultError: the port is taken; the message says by whom.
    """
    try:
        return dist.TCPStore(
            "127.0.0.1",
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout),
        )
    except dist.DistNetworkError as reason:
        if "EADDRINUSE" not in str(reason) and "in use" not in str(reason):
            raise
        raise EnvironmentFaultError(
            f"this launcher cannot serve the rendezvous on port {port}: it is in use by "
            f"{port_holder(port)}. End that process, or choose another port on all nodes."
        ) from None


class FreshStores(RendezvousHandler):
    """Another handler's rounds, in each of which ranks get a store that nobody has used."""

    def __init__(
        self, make: Callable[[], RendezvousHandler], timeout: float, address: str | None
    ) -> None:
        """Make the handler that is wrapped.

        Args:
            make: makes the handler that decides who takes part, and as which node; again where
                the connection to whoever serves it is lost, until he is back.
            timeout: in seconds, of operations on the store.
            address: under which other nodes reach this one; what the handler says by default.
        """
        self._make = make
        self._inner = make()
        self._timeout = timeout
        self._address = address
        self._server: dist.TCPStore | None = None

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        info = self._next_round(Deadline(self._timeout))
        store: Any = info.store
        if info.rank == 0:
            self._server = serve(0, self._timeout)  # and the last one's connections end
            address = self._address
            if address is None and info.bootstrap_store_info is not None:
                address = info.bootstrap_store_info.master_addr
            where = f"{address or socket.getfqdn()} {self._server.port}"
            store.set("trainkit/ranks-meet-at", where)
        else:
            self._server = None
            where = store.get("trainkit/ranks-meet-at").decode()
        host, _, port = where.rpartition(" ")
        meeting = RendezvousStoreInfo(host, int(port))
        return RendezvousInfo(store, info.rank, info.world_size, meeting)

    def get_backend(self) -> str:
        return self._inner.get_backend()

    def is_closed(self) -> bool:
        return self._inner.is_closed()

    def set_closed(self) -> None:
        self._inner.set_closed()

    def num_nodes_waiting(self) -> int:
        try:
            return self._inner.num_nodes_waiting()
        except RendezvousConnectionError:
            return 1  # whoever served it is gone, and his ranks with him

    def get_run_id(self) -> str:
        return self._inner.get_run_id()

    def shutdown(self) -> bool:
        return self._inner.shutdown()

    def _next_round(self, deadline: Deadline) -> RendezvousInfo:
        while True:
            try:
                return self._inner.next_rendezvous()
            except RendezvousConnectionError as reason:
                if deadline.passed:
                    raise
                log.warning("the rendezvous is lost (%s): waiting for it", _line(reason))
            while not deadline.passed:
                time.sleep(0.5)
                try:
                    self._inner = self._make()
                    break
                except RendezvousConnectionError:
                    continue

    def lost_nodes(self) -> list[int]:
        """Nodes whose launchers give no sign of life, as far as that can be told."""
        return self._inner.silent_nodes() if isinstance(self._inner, StaticRendezvous) else []


class StaticRendezvous(RendezvousHandler):
    """A fixed number of nodes, each with its own index; any of them may come back anew.

    Node 0 serves the store. Each launcher that wants a round writes a fresh identity; node 0
    opens a round once all nodes have written one that no earlier round had. Whoever sees an
    identity that is not of its round knows that a node has started again.
    """

    def __init__(
        self, host: str, port: int, *, node: int, num_nodes: int, run_id: str, timeout: float
    ) -> None:
        """Prepare; nobody is met yet.

        Args:
            host: name or address of node 0.
            port: where node 0 serves the store; 0, alone, takes a free one.
            node: index of this node.
            num_nodes: of the job.
            run_id: of the job; keeps keys of others apart.
            timeout: seconds to wait for all nodes.
        """
        self._host, self._port = host, port
        self._node, self._num_nodes = node, num_nodes
        self._run_id, self._timeout = run_id, timeout
        self._store: Any = None
        self._members: list[str] = []
        self._events = -1
        self._beaten = 0.0

    def get_backend(self) -> str:
        return "static"

    def get_run_id(self) -> str:
        return self._run_id

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nothing: a node that starts again is always welcome."""

    def shutdown(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Meet all nodes.

        Raises:
            DeadlineError: names the nodes that did not come.
        """
        deadline = Deadline(self._timeout)
        while True:
            try:
                number = self._meet(deadline)
                break
            except dist.DistError as reason:
                if self._node == 0 or deadline.passed:
                    raise
                # Node 0's launcher has ended; its successor serves a store of its own.
                log.warning("the rendezvous at node 0 is lost (%s): waiting for it", _line(reason))
                self._store = None
                time.sleep(min(0.5, deadline.left))
        store: Any = dist.PrefixStore(f"trainkit/{self._run_id}/round-{number}", self._store)
        meeting = RendezvousStoreInfo(self._host, self._port)
        return RendezvousInfo(store, self._node, self._num_nodes, meeting)

    def num_nodes_waiting(self) -> int:
        """Nodes that have started again since this round began."""
        if self._num_nodes == 1:
            return 0
        try:
            self._beat()
            events = self._store.add(self._key("events"), 0)
            if events == self._events:
                return 0
            self._events = events
            there = self._store.multi_get([self._key(f"node/{n}") for n in self._nodes])
        except dist.DistError:
            return 1  # node 0 itself is gone
        return sum(one.decode() != member for one, member in zip(there, self._members, strict=True))

    def silent_nodes(self) -> list[int]:
        """Nodes whose launchers give no sign of life; looks for some seconds.

        Without clocks of other hosts: a sign is a number that changes.
        """
        if self._num_nodes == 1:
            return []
        deadline = Deadline(_SILENT)
        silent = {node for node in self._nodes if node != self._node}
        first: dict[int, bytes] = {}
        try:
            while silent and not deadline.passed:
                self._beat()
                for node in sorted(silent):
                    key = self._key(f"beat/{node}")
                    value = self._store.get(key) if self._store.check([key]) else b""
                    if first.setdefault(node, value) != value:
                        silent.discard(node)
                time.sleep(0.1)
        except dist.DistError:
            return [0]
        return sorted(silent)

    @property
    def _nodes(self) -> range:
        return range(self._num_nodes)

    def _key(self, name: str) -> str:
        return f"trainkit/{self._run_id}/{name}"

    def _meet(self, deadline: Deadline) -> int:
        if self._store is None:
            self._store = self._connect(deadline)
        if self._num_nodes == 1:
            return int(self._store.add(self._key("round"), 1))
        me = uuid.uuid4().hex
        self._store.set(self._key(f"node/{self._node}"), me)
        self._store.add(self._key("events"), 1)
        self._beat()
        number = self._open(deadline) if self._node == 0 else self._join(me, deadline)
        self._events = -1
        return number

    def _connect(self, deadline: Deadline) -> dist.TCPStore:
        if self._node == 0:
            server = serve(self._port, self._timeout)
            self._port = server.port
            return server
        who = f"node {self._node}"
        await_address(self._host, self._port, who=who, deadline=deadline)
        return dist.TCPStore(
            self._host,
            self._port,
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=max(deadline.left, 1.0)),
        )

    def _open(self, deadline: Deadline) -> int:
        """Node 0: wait until every node is there anew, and open a round with them."""
        missing = set(self._nodes)
        there: dict[int, str] = {}

        def all_there() -> bool:
            self._beat()
            for node in sorted(missing):
                key = self._key(f"node/{node}")
                if self._store.check([key]):
                    there[node] = self._store.get(key).decode()
                    if not self._members or self._members[node] != there[node]:
                        missing.discard(node)
            return not missing

        wait_until(
            all_there,
            what=f"the launchers of all {self._num_nodes} nodes",
            whom=lambda: "missing: node " + ", ".join(map(str, sorted(missing))),
            deadline=deadline,
            hint=_HINT,
            pauses=backoff(last=0.1),
        )
        self._members = [there[node] for node in self._nodes]
        number = int(self._store.add(self._key("round"), 1))
        opened = json.dumps({"number": number, "members": self._members})
        self._store.set(self._key("opened"), opened)
        return number

    def _join(self, me: str, deadline: Deadline) -> int:
        """Another node: wait for a round that this launcher's identity belongs to."""

        def opened() -> dict[str, Any] | None:
            self._beat()
            if not self._store.check([self._key("opened")]):
                return None
            found: dict[str, Any] = json.loads(self._store.get(self._key("opened")))
            return found if found["members"][self._node] == me else None

        found = wait_until(
            opened,
            what=f"node 0 to open a round with node {self._node}",
            whom=self._absent,
            deadline=deadline,
            hint=_HINT,
            pauses=backoff(last=0.1),
        )
        self._members = found["members"]
        return int(found["number"])

    def _absent(self) -> str:
        return "it waits for others; its own log names them"

    def _beat(self) -> None:
        now = time.monotonic()
        if now - self._beaten >= _BEAT:
            self._store.set(self._key(f"beat/{self._node}"), repr(now))
            self._beaten = now


def _line(reason: Exception) -> str:
    return str(reason).strip().partition("\n")[0] or type(reason).__name__
