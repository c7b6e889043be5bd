"""Messages between the launcher and those who fork for it: JSON, and open files with it."""

import array
import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

from trainkit.coordination.frames import read_exactly

__all__ = ["receive", "send"]

_LENGTH = struct.Struct("!I")


def send(control: socket.socket, message: Mapping[str, Any], files: list[int]) -> None:
    """Send one message, and open files with it."""
    data = json.dumps(message).encode("utf-8", "surrogateescape")
    head = _LENGTH.pack(len(data))
    if files:
        rights = array.array("i", files)
        control.sendmsg([head], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    else:
        control.sendall(head)
    control.sendall(data)


def receive(control: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Receive one message and its open files; None at the end.

    Raises:
        OSError: the other end is gone in the middle of a message.
    """
    size = 16 * array.array("i").itemsize
    head, ancillary, _, _ = control.recvmsg(_LENGTH.size, socket.CMSG_SPACE(size))
    files = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            files.frombytes(data[: len(data) - len(data) % files.itemsize])
    if not head:
        return None, []
    while len(head) < _LENGTH.size:
        head += read_exactly(control, _LENGTH.size - len(head))
    (length,) = _LENGTH.unpack(head)
    text = read_exactly(control, length).decode("utf-8", "surrogateescape")
    message: dict[str, Any] = json.loads(text)
    return message, list(files)
