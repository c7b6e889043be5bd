"""Messages between a training process and its writer process: JSON, and now and then memory."""

import json
import socket
import struct
from typing import Any

__all__ = ["receive", "send"]

_LENGTH = struct.Struct("!Q")


def send(connection: socket.socket, message: dict[str, Any], descriptor: int | None = None) -> None:
    """Send a message, and with it the right to an open file.

    Raises:
        OSError: the other side is gone.
    """
    payload = json.dumps(message).encode()
    passed = [] if descriptor is None else [descriptor]
    socket.send_fds(connection, [_LENGTH.pack(len(payload))], passed)
    connection.sendall(payload)


def receive(connection: socket.socket) -> tuple[dict[str, Any], int | None]:
    """Wait for the next message, and the open file that came with it.

    Raises:
        EOFError: the other side has closed, or died.
        OSError: the connection failed.
    """
    head, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, 1)
    head += _exactly(connection, _LENGTH.size - len(head))
    payload = _exactly(connection, *_LENGTH.unpack(head))
    return json.loads(payload), next(iter(descriptors), None)


def _exactly(connection: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = connection.recv(min(size, 1 << 20))
        if not part:
            raise EOFError("the other side is gone")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
