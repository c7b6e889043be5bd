"""A store that rank 0 serves by itself, where torch's is not there or not worth its import.

One thread answers all connections; a rank that waits for a key costs it nothing until the key
comes. Whoever is on the network can reach it, as with torch's: it holds no secrets, and what
it is sent is never executed here.
"""

import contextlib
import selectors
import socket
import threading
import time
from collections import deque

from trainkit.coordination.frames import HELLO, Wanted, pack_reply, split_frame, unpack_request

__all__ = ["StoreServer"]


class _Guest:
    """One connection: what has come of the next request, and what is still to be sent."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = bytearray()
        self.pending = bytearray()
        self.greeted = False
        self.awaited: tuple[str, float] | None = None
        """Key, and until when on the monotonic clock, while this guest waits."""
        self.requests: deque[bytes] = deque()


class StoreServer:
    """Serves a map of bytes to clients of ``connect_store``, until it is closed."""

    def __init__(self, port: int) -> None:
        """Listen on ``port`` of all interfaces, 0 for a free one, and answer from now on.

        Raises:
            OSError: the port cannot be had.
        """
        self._listener = _listen(port)
        self.port = int(self._listener.getsockname()[1])
        self._values: dict[str, bytes] = {}
        self._guests: set[_Guest] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._bell, self._door = socket.socketpair()
        self._selector.register(self._door, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="trainkit-store", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hang up on all and free the port; twice is once."""
        with contextlib.suppress(OSError):
            self._bell.send(b"x")
        self._thread.join()
        self._bell.close()

    def _serve(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(self._selector.close)
            stack.callback(self._listener.close)
            stack.callback(self._door.close)
            while True:
                for key, _ in self._selector.select(self._pause()):
                    if key.fileobj is self._door:
                        for guest in list(self._guests):
                            self._dismiss(guest)
                        return
                    if key.fileobj is self._listener:
                        self._admit()
                    else:
                        self._attend(key.data)
                self._give_up_waits()

    def _pause(self) -> float | None:
        ends = [guest.awaited[1] for guest in self._guests if guest.awaited is not None]
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _admit(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it has gone again, or there is no descriptor left for it
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        guest = _Guest(connection)
        guest.pending += HELLO
        self._guests.add(guest)
        self._selector.register(connection, selectors.EVENT_READ, guest)
        self._send(guest)

    def _dismiss(self, guest: _Guest) -> None:
        self._guests.discard(guest)
        self._selector.unregister(guest.connection)
        guest.connection.close()

    def _attend(self, guest: _Guest) -> None:
        """Read what is there and answer whole requests; hang up on what is no client."""
        if guest not in self._guests:
            return
        try:
            part = guest.connection.recv(1 << 16)
            guest.received += part
            if not part or not _is_ours(guest):
                self._dismiss(guest)
                return
            if guest.greeted:
                while (payload := split_frame(guest.received)) is not None:
                    guest.requests.append(payload)
                self._answer_all(guest)
        except BlockingIOError:
            self._send(guest)
        except (OSError, ValueError):
            self._dismiss(guest)

    def _answer_all(self, guest: _Guest) -> None:
        while guest.requests and guest.awaited is None:
            wanted, key, value = unpack_request(guest.requests.popleft())
            if wanted is Wanted.WAIT and key not in self._values:
                guest.awaited = (key, time.monotonic() + float(value))
                break
            guest.pending += pack_reply(self._answer(wanted, key, value))
        self._send(guest)

    def _answer(self, wanted: Wanted, key: str, value: bytes) -> bytes | None:
        if wanted is Wanted.GET:
            return self._values.get(key)
        if wanted is Wanted.DELETE:
            self._values.pop(key, None)
        elif wanted is Wanted.ADD:
            value = str(int(self._values.get(key, b"0")) + int(value)).encode()
            self._put(key, value)
            return value
        elif wanted is Wanted.SET:
            self._put(key, value)
        return b""

    def _put(self, key: str, value: bytes) -> None:
        self._values[key] = value
        for guest in [g for g in self._guests if g.awaited is not None and g.awaited[0] == key]:
            self._end_wait(guest, found=True)

    def _give_up_waits(self) -> None:
        now = time.monotonic()
        for guest in [g for g in self._guests if g.awaited is not None and g.awaited[1] <= now]:
            self._end_wait(guest, found=False)

    def _end_wait(self, guest: _Guest, *, found: bool) -> None:
        guest.awaited = None
        guest.pending += pack_reply(b"" if found else None)
        try:
            self._answer_all(guest)
        except ValueError:
            self._dismiss(guest)

    def _send(self, guest: _Guest) -> None:
        """Send what the socket takes, and the rest when it takes more."""
        try:
            while guest.pending:
                del guest.pending[: guest.connection.send(guest.pending)]
        except BlockingIOError:
            pass
        except OSError:
            self._dismiss(guest)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if guest.pending else 0)
        if self._selector.get_key(guest.connection).events != events:
            self._selector.modify(guest.connection, events, guest)


def _is_ours(guest: _Guest) -> bool:
    """Whether what came so far is how a client begins."""
    if guest.greeted:
        return True
    if not HELLO.startswith(bytes(guest.received[: len(HELLO)])):
        return False
    if len(guest.received) >= len(HELLO):
        guest.greeted = True
        del guest.received[: len(HELLO)]
    return True


def _listen(port: int) -> socket.socket:
    """On IPv6 and IPv4 alike, or on IPv4 where the kernel has no IPv6."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
    return socket.create_server(("", port), backlog=1024)
