"""The wire between workers and parameter servers: a fixed header, JSON, raw numbers.

    magic  kind  unused  version  rank  round  length of JSON  length of payload  CRC-32 of these
    4s     u8    u8      u16      i32   i64    u32             u64                u32

All little-endian. Nothing that arrives is ever executed or unpickled, and no length is believed
before the header's checksum has been. Payloads are received where they are to stay.
"""

import json
import socket
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch

from trainkit.errors import RetryableError

__all__ = [
    "EMPTY",
    "Frame",
    "FrameReader",
    "Kind",
    "ProtocolError",
    "await_frame",
    "new_buffer",
    "packed",
]

VERSION = 1
_HEADER = struct.Struct("<4sBBHiqIQ")
_CRC = struct.Struct("<I")
_SIZE = _HEADER.size + _CRC.size
_MAGIC = b"TKPS"
_MOST_JSON = 1 << 24
"""Bytes; positions in the data and names of ranks are a few hundred."""
EMPTY = memoryview(b"")


class ProtocolError(RetryableError):
    """Bytes that no worker and no server of this version sends."""


class Kind(IntEnum):
    """What a frame says. Requests come from workers, answers from servers."""

    HELLO = 1
    WELCOME = 2
    SEED = 3
    """The chief brings parameters, and momentum, to a server that has none."""
    JOIN = 4
    STATE = 5
    """Parameters as they are at the start of a round."""
    PUSH = 6
    ROUND = 7
    """What became of a round: parameters, or their change, at the start of the next."""
    LATE = 8
    """The round was over: parameters at the start of the one that is open."""
    PARK = 9
    """This worker has left the loop for a while: rounds need not wait for it."""
    POSITION = 10
    GATHER = 11
    GATHERED = 12
    CONTROL = 13
    ANSWER = 14
    LEAVE = 15
    BYE = 16
    WAITING = 17
    """A sign of life: what is awaited, and from whom."""
    FAULT = 18
    OVER = 19
    """The chief is done: the job is over."""
    OK = 20


@dataclass(frozen=True, slots=True)
class Frame:
    """One message."""

    kind: Kind
    rank: int
    round: int
    meta: dict[str, Any]
    payload: memoryview = EMPTY


def packed(
    kind: Kind,
    *,
    rank: int = -1,
    round: int = -1,
    meta: Mapping[str, Any] | None = None,
    size: int = 0,
) -> bytes:
    """All of a frame but its payload of ``size`` bytes."""
    text = json.dumps(meta).encode() if meta else b""
    head = _HEADER.pack(_MAGIC, kind, 0, VERSION, rank, round, len(text), size)
    return head + _CRC.pack(zlib.crc32(head)) + text


def new_buffer(size: int) -> memoryview:
    """Memory for ``size`` bytes that is not filled with zeros first, and that torch can view."""
    return torch.empty(size, dtype=torch.uint8).numpy().data if size else EMPTY


class FrameReader:
    """Cuts a stream into frames; whoever owns the socket receives into ``target``."""

    def __init__(self, place: Callable[[Kind, int, int], memoryview]) -> None:
        """Begin a stream.

        Args:
            place: where a payload goes, given its frame's kind and round, and its size in bytes.
                It raises ``ProtocolError`` where there should be none of this size.
        """
        self._place = place
        self._begin()

    def _begin(self) -> None:
        self._head = memoryview(bytearray(_SIZE))
        self._text: memoryview | None = None
        self._payload = EMPTY
        self._in_payload = False
        self._fields: tuple[Kind, int, int] = (Kind.OK, -1, -1)
        self._target = self._head

    @property
    def target(self) -> memoryview:
        """Where the next bytes go; never empty."""
        return self._target

    @property
    def idle(self) -> bool:
        """Whether the stream is between two frames."""
        return self._text is None and len(self._target) == _SIZE

    def received(self, count: int) -> Frame | None:
        """Say that ``count`` bytes came; returns the frame that they complete, if they do.

        Raises:
            ProtocolError: this is not our protocol, or a length cannot be right.
        """
        self._target = self._target[count:]
        while not len(self._target):
            if self._text is None:
                self._read_head()
            elif not self._in_payload:
                self._in_payload = True
                self._target = self._payload
            else:
                return self._complete()
        return None

    def _read_head(self) -> None:
        head = bytes(self._head[: _HEADER.size])
        magic, kind, _, version, rank, number, text, size = _HEADER.unpack(head)
        if magic != _MAGIC or zlib.crc32(head) != _CRC.unpack(self._head[_HEADER.size :])[0]:
            raise ProtocolError(
                "what came is no frame of trainkit's parameter servers: expected a header with a "
                f"right checksum, found {head[:8]!r}. Does another program talk to this port?"
            )
        if version != VERSION:
            raise ProtocolError(
                f"the other side speaks version {version} of the protocol, this one {VERSION}: "
                f"run the same trainkit in all pods"
            )
        if kind not in Kind._value2member_map_ or text > _MOST_JSON:
            raise ProtocolError(f"a frame of kind {kind} with {text} bytes of JSON")
        self._fields = (Kind(kind), rank, number)
        self._payload = self._place(Kind(kind), number, size) if size else EMPTY
        if len(self._payload) != size:
            raise ProtocolError(
                f"{Kind(kind).name} with {size} bytes, expected {len(self._payload)}"
            )
        self._text = memoryview(bytearray(text))
        self._target = self._text

    def _complete(self) -> Frame:
        if self._text is None:
            raise AssertionError("a frame without a head")  # a bug of ours
        kind, rank, number = self._fields
        try:
            meta = json.loads(bytes(self._text)) if len(self._text) else {}
        except ValueError as reason:
            raise ProtocolError(f"{kind.name} with JSON that cannot be read: {reason}") from None
        if not isinstance(meta, dict):
            raise ProtocolError(f"{kind.name} with a {type(meta).__name__} in place of an object")
        frame = Frame(kind, rank, number, meta, self._payload)
        self._begin()
        return frame


def await_frame(connection: socket.socket, kind: Kind) -> Frame:
    """The next frame of ``kind`` on a blocking connection; others are passed over.

    Raises:
        OSError: it is lost, or the socket's time is over.
        ProtocolError: it is not our protocol.
    """
    reader = FrameReader(lambda kind, number, size: EMPTY)
    while True:
        # Never more than to the frame's end, so the next one can be awaited by another call.
        count = connection.recv_into(reader.target)
        if count == 0:
            raise ConnectionResetError("closed by the server")
        frame = reader.received(count)
        if frame is not None and frame.kind is kind:
            return frame
