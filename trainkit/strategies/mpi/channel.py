"""Short messages and open files among the ranks of one host, without spinning.

MPI waits by polling: where ranks have no core to spare, the one that waits takes it from the one
that computes. A socket sleeps in the kernel, ends at once when the peer's process does, and
carries open files, by which ranks map each other's memory.
"""

import contextlib
import errno
import os
import socket
import struct
import time
import uuid
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from trainkit.errors import DeadlineError, PeerLostError
from trainkit.waiting import Deadline

__all__ = ["HostChannel", "Message"]

Message = tuple[bytes, int | None]
"""Payload, and an open file that came with it, which is the receiver's."""

_LARGEST = 4096
_PAUSE = 50e-6
"""Seconds between two looks at a socket while there is something else to look after."""
_FILE = socket.CMSG_SPACE(struct.calcsize("i"))
_HELLO = struct.Struct("=i32s")


class HostChannel:
    """One connection to each other rank of the host; used by one thread."""

    def __init__(
        self, index: int, names: Sequence[str], peers: dict[int, socket.socket], timeout: float
    ) -> None:
        """Wrap connections that ``open`` has made.

        Args:
            index: of this rank on the host.
            names: what each rank of the host is called in messages, such as ``rank 3``.
            peers: index → connection.
            timeout: seconds that a rank may be late.
        """
        self.index = index
        self.size = len(names)
        self.peers = tuple(sorted(peers))
        self.names = names
        # In the order of ranks and not in that in which they called: what is added up in the order
        # of messages would else be rounded otherwise in another run.
        self._sockets = dict(sorted(peers.items()))
        _Forks.tell(self)
        self._timeout = timeout
        self.meanwhile: Callable[[], bool] = lambda: False
        """Called again and again while this rank waits, as long as it returns True: what moves
        on only when somebody calls MPI would stand still for as long as a socket sleeps."""
        whole, part = divmod(timeout, 1)
        limit = struct.pack("ll", int(whole), int(part * 1e6))
        for connection in peers.values():
            # By the kernel, since a timeout of Python's adds a poll() to each message.
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

    @classmethod
    def open(cls, comm: Any, names: Sequence[str], timeout: float) -> "HostChannel | None":
        """Connect the ranks of ``comm``, all of one host: collective over it.

        Returns:
            None, on all of them, where a rank cannot be reached from another: containers that
            share a host name and no network, say.
        """
        index, size = comm.Get_rank(), comm.Get_size()
        connected: dict[int, socket.socket] = {}
        key = uuid.uuid4().hex.encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            try:
                # An abstract name: no file, and gone with the socket.
                listening.bind(b"\0trainkit-mpi-" + key)
                listening.listen(size)
            except OSError:
                key = b""
            keys: list[bytes] = comm.allgather(key)
            whole = all(keys)
            if whole:
                try:
                    deadline = Deadline(min(timeout, 30.0))
                    _connect(index, keys, listening, connected, deadline)
                except (OSError, TimeoutError, DeadlineError):
                    whole = False
        if not all(comm.allgather(whole)):
            for connection in connected.values():
                connection.close()
            return None
        return cls(index, names, connected, timeout)

    def send(self, payload: bytes, file: int | None = None) -> None:
        """Tell every other rank ``payload`` (4,096 bytes at most), with an open file if given.

        Raises:
            PeerLostError: a rank's process is gone.
            DeadlineError: a rank has not read its messages for too long.
        """
        for peer, connection in self._sockets.items():
            try:
                if file is None:
                    connection.send(payload, socket.MSG_NOSIGNAL)
                else:
                    socket.send_fds(connection, [payload], [file], socket.MSG_NOSIGNAL)
            except OSError as reason:
                raise self._failed(peer, reason) from None

    def receive(self, what: str) -> dict[int, Message]:
        """The next message of every other rank, by its index on the host.

        Args:
            what: they are awaited for, for errors.

        Raises:
            PeerLostError: a rank's process is gone; the message names it.
            DeadlineError: some did not come in time; the message names them.
        """
        found: dict[int, Message] = {}
        for peer, connection in self._sockets.items():
            self._look_after_others(connection)
            try:
                payload, control, _, _ = connection.recvmsg(
                    _LARGEST, _FILE, socket.MSG_CMSG_CLOEXEC
                )
            except OSError as reason:
                if reason.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
                    raise self._late(what, peer, found) from None
                raise self._failed(peer, reason, what) from None
            if not payload:
                raise self._gone(peer, what)
            file = struct.unpack("i", control[0][2][:4])[0] if control else None
            found[peer] = (payload, file)
        return found

    def close(self) -> None:
        """Hang up; ranks that still wait for this one are told so."""
        for connection in self._sockets.values():
            with contextlib.suppress(OSError):  # the other side was first
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def forget(self) -> None:
        """In a forked process: hang up for this process alone."""
        for connection in self._sockets.values():
            connection.close()

    def _look_after_others(self, connection: socket.socket) -> None:
        deadline: Deadline | None = None
        while self.meanwhile():
            deadline = deadline or Deadline(self._timeout)
            try:
                connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
                return
            except BlockingIOError:
                if deadline.passed:
                    return
                time.sleep(_PAUSE)
            except OSError:
                return  # which the caller will see too

    def _late(self, what: str, first: int, found: dict[int, Message]) -> DeadlineError:
        waiting = [peer for peer in self.peers if peer >= first and peer not in found]
        late = []
        for peer in waiting:
            try:
                if not self._sockets[peer].recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                    return DeadlineError(str(self._gone(peer, what)))
            except BlockingIOError:
                late.append(self.names[peer])
            except OSError:
                late.append(self.names[peer])
        return DeadlineError(
            f"timed out waiting for {', '.join(late)} of this host to join {what}: "
            f"{self._timeout:.0f} s. Look at the log of the missing rank(s) for the first error."
        )

    def _failed(self, peer: int, reason: OSError, what: str = "") -> PeerLostError | DeadlineError:
        if reason.errno in (errno.EAGAIN, errno.EWOULDBLOCK):
            return DeadlineError(
                f"timed out waiting for {self.names[peer]} to read its messages: "
                f"{self._timeout:.0f} s"
            )
        return self._gone(peer, what)

    def _gone(self, peer: int, what: str) -> PeerLostError:
        where = f" before it joined {what}" if what else ""
        return PeerLostError(
            f"{self.names[peer]} of this host is gone{where} (connection closed by peer). Look at "
            f"its log for the first error."
        )


class _Forks:
    """A loader's worker that holds a rank's connections would hide its end from the others."""

    channels: ClassVar["weakref.WeakSet[HostChannel]"] = weakref.WeakSet()
    _hooked = False

    @classmethod
    def tell(cls, channel: HostChannel) -> None:
        cls.channels.add(channel)
        if not cls._hooked:  # a hook cannot be taken back
            cls._hooked = True
            os.register_at_fork(after_in_child=cls._forget)

    @classmethod
    def _forget(cls) -> None:
        for channel in list(cls.channels):
            channel.forget()
        cls.channels.clear()


def _connect(
    index: int,
    keys: Sequence[bytes],
    listening: socket.socket,
    connected: dict[int, socket.socket],
    deadline: Deadline,
) -> None:
    """Each rank calls those before it, and is called by those after it."""
    for peer in range(index):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connected[peer] = connection
        connection.settimeout(max(deadline.left, 0.01))
        connection.connect(b"\0trainkit-mpi-" + keys[peer])
        connection.send(_HELLO.pack(index, keys[peer]))
    for _ in range(index + 1, len(keys)):
        listening.settimeout(max(deadline.left, 0.01))
        connection, _address = listening.accept()
        connection.settimeout(max(deadline.left, 0.01))
        peer, key = _HELLO.unpack(connection.recv(_HELLO.size))
        user = struct.unpack(
            "iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        )[1]
        if key != keys[index] or peer in connected or user not in (os.getuid(), 0):
            connection.close()
            raise ConnectionError("a stranger called")
        connected[peer] = connection
