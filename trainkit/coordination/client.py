"""The side of ranks: a ``Store`` that another process serves, see ``server``."""

import socket
import threading

from trainkit.coordination.frames import HELLO, Wanted, pack_request, read_exactly, read_reply
from trainkit.coordination.network import await_address, port_not_served
from trainkit.coordination.server import StoreServer
from trainkit.errors import EnvironmentFaultError, PeerLostError
from trainkit.waiting import Deadline

__all__ = ["RemoteStore", "connect_store", "serve_store"]

_SILENCE = 60.0
"""Seconds beyond what was asked for in which a store has to answer."""


class RemoteStore:
    """A connection to a ``StoreServer``; a wait of one thread blocks the calls of others."""

    def __init__(self, host: str, port: int, seconds: float) -> None:
        """Connect within ``seconds``.

        Raises:
            OSError: nobody listens there, or does not answer.
            EnvironmentFaultError: it is no store of ours.
        """
        self.host = host
        self.port = port
        self._turn = threading.Lock()
        self._server: StoreServer | None = None
        self._socket = socket.create_connection((host, port), timeout=seconds)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _notice_lost_hosts(self._socket)
            self._socket.sendall(HELLO)
            greeting = read_exactly(self._socket, len(HELLO))
            if greeting != HELLO:
                raise EnvironmentFaultError(
                    f"what listens at {host}:{port} is not the store of a trainkit rank 0 (it "
                    f"said {greeting!r}). Another program has that port; give this job another "
                    f"MASTER_PORT on all of its ranks."
                )
        except BaseException:
            self._socket.close()
            raise

    def set(self, key: str, value: bytes) -> None:
        """See ``Store.set``."""
        self._ask(Wanted.SET, key, value)

    def get(self, key: str) -> bytes | None:
        """See ``Store.get``."""
        return self._ask(Wanted.GET, key)

    def wait(self, key: str, seconds: float) -> bool:
        """See ``Store.wait``."""
        return self._ask(Wanted.WAIT, key, str(seconds).encode(), patience=seconds) is not None

    def add(self, key: str, amount: int) -> int:
        """See ``Store.add``."""
        return int(self._ask(Wanted.ADD, key, str(amount).encode()) or b"0")

    def delete(self, key: str) -> None:
        """See ``Store.delete``."""
        self._ask(Wanted.DELETE, key)

    def close(self) -> None:
        """Hang up; where this process serves the store, for everybody."""
        self._socket.close()
        if self._server is not None:
            self._server.close()

    def serves_by(self, server: StoreServer) -> None:
        """Have ``close`` end ``server`` too, which lives in this process."""
        self._server = server

    def _ask(
        self, wanted: Wanted, key: str, value: bytes = b"", patience: float = 0.0
    ) -> bytes | None:
        request = pack_request(wanted, key, value)
        with self._turn:
            try:
                self._socket.settimeout(patience + _SILENCE)
                self._socket.sendall(request)
                return read_reply(self._socket)
            except OSError as reason:
                # Half a reply may have been read: nothing that follows would fit.
                self._socket.close()
                raise PeerLostError(
                    f"the store that the ranks share at {self.host}:{self.port} is lost "
                    f"({reason}). Rank 0 or its host went away; look at the log of rank 0 for "
                    f"the first error."
                ) from reason


def serve_store(port: int, deadline: Deadline) -> RemoteStore:
    """Serve a store on ``port`` of this host (0: a free one) and connect to it.

    Raises:
        EnvironmentFaultError: the port is taken; the message names it and, where it can be
            seen, who holds it.
    """
    try:
        server = StoreServer(port)
    except OSError as reason:
        raise port_not_served(port, reason.strerror or str(reason)) from None
    store = RemoteStore("127.0.0.1", server.port, max(deadline.left, 1.0))
    store.serves_by(server)
    return store


def connect_store(host: str, port: int, who: str, deadline: Deadline) -> RemoteStore:
    """Connect to the store that another process serves, once its name and port are there.

    Args:
        host: name or address of the server.
        port: its port.
        who: this process, for messages.
        deadline: until when name and port have to be there.

    Raises:
        DeadlineError: name or port did not appear; the message names both.
        EnvironmentFaultError: something else listens there.
        PeerLostError: it hung up.
    """
    await_address(host, port, who=who, deadline=deadline)
    try:
        return RemoteStore(host, port, max(deadline.left, 1.0))
    except OSError as reason:
        raise PeerLostError(
            f"the store at {host}:{port} was there and hung up on {who} ({reason}). Rank 0 "
            f"probably failed; look at its log."
        ) from reason


def _notice_lost_hosts(connection: socket.socket) -> None:
    """Have the kernel ask an idle peer whether it is there: a host that is lost says nothing."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
