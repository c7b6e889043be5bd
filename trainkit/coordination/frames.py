"""What a store's client and server say to each other: one frame a request, one a reply.

A frame is its length in 4 bytes, big-endian, and that many bytes. A request is one byte for
what is wanted, the key's length in 2 bytes, the key, and the value; a reply is whether there
is an answer in one byte, and the answer. Both sides open with ``HELLO``, so that a client of
another protocol, or a server of one, is known at once.
"""

import socket
import struct
from enum import IntEnum

__all__ = [
    "HELLO",
    "Wanted",
    "pack_reply",
    "pack_request",
    "read_exactly",
    "read_reply",
    "split_frame",
    "unpack_request",
]

HELLO = b"trainkit-store-1"

_LIMIT = 1 << 26
"""Bytes of a frame at most; control messages are short, so more is no message of ours."""

_LENGTH = struct.Struct(">I")
_REQUEST = struct.Struct(">BH")
_REPLY = struct.Struct(">B")


class Wanted(IntEnum):
    """What a request asks for; the value of WAIT is seconds, that of ADD a number, as text."""

    SET = 1
    GET = 2
    WAIT = 3
    ADD = 4
    DELETE = 5


def pack_request(wanted: Wanted, key: str, value: bytes) -> bytes:
    """One request as a frame."""
    name = key.encode()
    return _frame(_REQUEST.pack(wanted, len(name)) + name + value)


def unpack_request(payload: bytes) -> tuple[Wanted, str, bytes]:
    """Parts of a request's payload.

    Raises:
        ValueError: it is none.
    """
    try:
        wanted, length = _REQUEST.unpack_from(payload)
    except struct.error as reason:
        raise ValueError(str(reason)) from None
    start = _REQUEST.size + length
    if start > len(payload):
        raise ValueError("a key longer than its frame")
    return Wanted(wanted), payload[_REQUEST.size : start].decode(), payload[start:]


def pack_reply(answer: bytes | None) -> bytes:
    """One reply as a frame; None is "there is none"."""
    return _frame(_REPLY.pack(answer is not None) + (answer or b""))


def split_frame(received: bytearray) -> bytes | None:
    """Take the first whole frame out of ``received``; None while it is not all there.

    Raises:
        ValueError: its length says that it is no frame of ours.
    """
    if len(received) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(received)
    if length > _LIMIT:
        raise ValueError(f"a frame of {length} bytes")
    end = _LENGTH.size + length
    if len(received) < end:
        return None
    payload = bytes(received[_LENGTH.size : end])
    del received[:end]
    return payload


def read_exactly(connection: socket.socket, count: int) -> bytes:
    """Read ``count`` bytes.

    Raises:
        ConnectionError: the other side hung up before.
        OSError: as the socket says, ``TimeoutError`` among them.
    """
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(min(count - len(parts), 1 << 20))
        if not part:
            raise ConnectionError("the connection was closed")
        parts += part
    return bytes(parts)


def read_reply(connection: socket.socket) -> bytes | None:
    """Read one reply; None is "there is none".

    Raises:
        OSError: the connection failed, or what came is no reply.
    """
    (length,) = _LENGTH.unpack(read_exactly(connection, _LENGTH.size))
    if not 1 <= length <= _LIMIT:
        raise ConnectionError(f"a reply of {length} bytes is none")
    payload = read_exactly(connection, length)
    return payload[1:] if payload[0] else None


def _frame(payload: bytes) -> bytes:
    if len(payload) > _LIMIT:
        raise ValueError(f"{len(payload)} bytes are too many for the store: it is for messages")
    return _LENGTH.pack(len(payload)) + payload
