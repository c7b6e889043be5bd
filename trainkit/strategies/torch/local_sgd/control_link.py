"""A worker's questions to the first server that are not about parameters, such as of a stop."""

import socket
import threading
from collections.abc import Mapping
from typing import Any

from trainkit.strategies.torch.local_sgd.addresses import Address
from trainkit.strategies.torch.local_sgd.frames import Kind, await_frame, packed
from trainkit.strategies.torch.local_sgd.sockets import connected

__all__ = ["ControlLink"]


class ControlLink:
    """Questions to the first server that are not about parameters; from any thread."""

    def __init__(self, address: Address, rank: int, *, timeout: float) -> None:
        """Prepare; ``timeout`` is seconds for one question."""
        self._address = address
        self._rank = rank
        self._timeout = timeout
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def ask(self, **question: Any) -> dict[str, Any]:
        """Ask, on the connection of the last question if there is one.

        Raises:
            OSError: the server does not answer.
        """
        with self._lock:
            if self._socket is None:
                self._socket = connected(self._address, self._timeout)
            try:
                return self._asked(self._socket, question)
            except OSError:
                self._socket.close()
                self._socket = None
                raise

    def _asked(self, connection: socket.socket, question: Mapping[str, Any]) -> dict[str, Any]:
        connection.sendall(packed(Kind.CONTROL, rank=self._rank, meta=question))
        return await_frame(connection, Kind.ANSWER).meta

    def close(self) -> None:
        """Hang up."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
