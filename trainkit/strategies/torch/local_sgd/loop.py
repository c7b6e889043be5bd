"""A server's connections: one thread that accepts, reads and writes, and never waits for one."""

import logging
import selectors
import socket
from collections.abc import Callable

from trainkit.strategies.torch.local_sgd.connection import Connection
from trainkit.strategies.torch.local_sgd.frames import Frame, Kind, ProtocolError

__all__ = ["ConnectionLoop"]

log = logging.getLogger(__name__)


class ConnectionLoop:
    """Hands frames to whoever knows what to do; a bad one ends its own connection alone."""

    def __init__(
        self,
        listener: socket.socket,
        *,
        place: Callable[[Connection, Kind, int, int], memoryview],
        heard: Callable[[Connection, Frame], None],
        lost: Callable[[Connection, str], None],
    ) -> None:
        """Begin to accept.

        Args:
            listener: a listening socket; closed by ``close``.
            place: memory for a payload, as for ``Connection``.
            heard: called with each frame; may raise ``ProtocolError`` and what comes of reading
                fields that are missing or of another type.
            lost: called when a connection has ended, with the reason, before it is closed.
        """
        listener.setblocking(False)
        self._listener = listener
        self._place, self._heard, self._lost = place, heard, lost
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self.connections: set[Connection] = set()

    def wake_by(self, descriptor: int) -> None:
        """Have ``receive`` return soon after ``descriptor`` becomes readable."""
        self._selector.register(descriptor, selectors.EVENT_READ)

    def receive(self, seconds: float) -> None:
        """Wait ``seconds`` at most for something to come, and hand it on."""
        for key, events in self._selector.select(seconds):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.data, Connection):
                self._serve(key.data, events)

    def send(self) -> None:
        """Send what waits to be sent, as far as it goes."""
        for connection in list(self.connections):
            if connection.is_sending:
                self.flush(connection)

    def flush(self, connection: Connection) -> None:
        """``send`` for one connection."""
        if connection not in self.connections:
            return
        try:
            connection.send()
        except OSError as reason:
            self.end(connection, str(reason))
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.is_sending else 0)
        self._selector.modify(connection.socket, wanted, connection)

    def refuse(self, connection: Connection, words: str, *, final: bool = False) -> None:
        """Say what is wrong and hang up; ``final``: another try would end in the same way."""
        connection.queue(Kind.FAULT, meta={"message": words, "final": final})
        self.flush(connection)
        self.end(connection, words)

    def end(self, connection: Connection, why: str) -> None:
        """Give a connection up."""
        self._lost(connection, why)
        self._drop(connection)

    def close(self) -> None:
        """Close all connections."""
        for connection in list(self.connections):
            self._drop(connection)
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        try:
            accepted, address = self._listener.accept()
        except OSError:
            return  # gone again before its turn came
        connection = Connection(accepted, str(address[0]), self._place)
        self.connections.add(connection)
        self._selector.register(accepted, selectors.EVENT_READ, connection)

    def _serve(self, connection: Connection, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                for frame in connection.receive():
                    if connection not in self.connections:
                        return  # refused by an answer to the frame before
                    self._heard(connection, frame)
            if events & selectors.EVENT_WRITE:
                self.flush(connection)
        except ProtocolError as reason:
            log.warning("a connection from %s is closed: %s", connection.address, reason)
            self.refuse(connection, str(reason), final=True)
        except OSError as reason:
            self.end(connection, str(reason))
        except (KeyError, TypeError, ValueError) as reason:
            log.warning("a connection from %s is closed: %r", connection.address, reason)
            self.refuse(connection, f"a request that makes no sense: {reason!r}", final=True)

    def _drop(self, connection: Connection) -> None:
        if connection in self.connections:
            self.connections.discard(connection)
            self._selector.unregister(connection.socket)
            connection.close()
