"""One worker's connection as the server's loop sees it: never blocking, in both directions."""

import contextlib
import socket
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from trainkit.strategies.torch.local_sgd.frames import Frame, FrameReader, Kind, packed
from trainkit.strategies.torch.local_sgd.sockets import keep_alive

__all__ = ["Connection"]

_AT_ONCE = 1 << 24
"""Bytes that one turn of the loop takes from one connection, so that none starves the others."""


class Connection:
    """Receives frames where they are to stay, and sends views of what is there."""

    def __init__(
        self,
        accepted: socket.socket,
        address: str,
        place: Callable[["Connection", Kind, int, int], memoryview],
    ) -> None:
        """Take over a socket.

        Args:
            accepted: the socket.
            address: of the other side, for messages.
            place: as for ``FrameReader``, after this connection.
        """
        accepted.setblocking(False)
        keep_alive(accepted)
        self.socket = accepted
        self.address = address
        self.rank: int | None = None
        """Of the worker; None until it has said so, and where it only looks on."""
        self.observes = False
        """Whether all it wants to know is when the job is over."""
        self.keeper = False
        """Whether this worker keeps a copy of the outer momentum."""
        self.joining: dict[str, Any] | None = None
        """What it asked when it joined, until it is in."""
        self._reader = FrameReader(lambda kind, number, size: place(self, kind, number, size))
        self._outbox: deque[memoryview] = deque()

    @property
    def is_sending(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._outbox)

    def receive(self) -> list[Frame]:
        """What has come.

        Raises:
            OSError: the connection is lost, or was closed by the other side.
            ProtocolError: it is not our protocol.
        """
        frames: list[Frame] = []
        left = _AT_ONCE
        while left > 0:
            try:
                count = self.socket.recv_into(self._reader.target)
            except BlockingIOError:
                break
            if count == 0:
                if frames:
                    break  # they are to be heard; the end is found out at the next turn
                raise ConnectionResetError("closed by the other side")
            left -= count
            frame = self._reader.received(count)
            if frame is not None:
                frames.append(frame)
        return frames

    def queue(
        self,
        kind: Kind,
        *,
        round: int = -1,
        meta: Mapping[str, Any] | None = None,
        payloads: tuple[memoryview, ...] = (),
    ) -> None:
        """Send a frame; ``payloads`` must not change until it is sent."""
        size = sum(map(len, payloads))
        self._outbox.append(memoryview(packed(kind, round=round, meta=meta, size=size)))
        self._outbox.extend(payload for payload in payloads if len(payload))

    def send(self) -> None:
        """Send as much as goes.

        Raises:
            OSError: the connection is lost.
        """
        while self._outbox:
            try:
                count = self.socket.sendmsg(list(self._outbox)[:8])
            except BlockingIOError:
                return
            while count and self._outbox:
                first = self._outbox[0]
                if count < len(first):
                    self._outbox[0] = first[count:]
                    break
                count -= len(first)
                self._outbox.popleft()

    def close(self) -> None:
        """Close; what was not sent is dropped."""
        self._outbox.clear()
        with contextlib.suppress(OSError):
            self.socket.close()
