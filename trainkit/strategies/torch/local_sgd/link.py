"""A worker's connection to one server: requests, answers, and what becomes of it when it breaks."""

import contextlib
import logging
import socket
import time
from collections.abc import Mapping
from typing import Any

from trainkit.errors import DeadlineError, EnvironmentFaultError, PeerLostError, TrainkitError
from trainkit.strategies.torch.local_sgd.addresses import Address
from trainkit.strategies.torch.local_sgd.frames import (
    Frame,
    FrameReader,
    Kind,
    ProtocolError,
    new_buffer,
    packed,
)
from trainkit.strategies.torch.local_sgd.sockets import connected
from trainkit.waiting import Deadline, wait_until

__all__ = ["JobOver", "ServerLink"]

log = logging.getLogger(__name__)

_SILENCE = 30.0
"""Seconds without a byte from a server that has something to answer: it gives signs of life more
often, so it or the way to it is gone."""
_SLICE = 1.0
"""Seconds of one wait for the socket, between which deadlines are looked at."""
_NOTICE = 10.0
"""Seconds of quiet waiting; then the log says for whom."""


class JobOver(SystemExit):
    """The chief is done, so there is nothing left to train for; a normal end, with code 0."""


class ServerLink:
    """The connection of worker ``rank`` to the server ``index``."""

    def __init__(
        self, index: int, address: Address, rank: int, world_size: int, process: str
    ) -> None:
        """Prepare; ``connect`` connects.

        Args:
            index: of the server.
            address: of the server.
            rank: of this worker.
            world_size: workers of the job.
            process: names this process among all that ever were this worker.
        """
        self.index = index
        self.address = address
        self.welcome: dict[str, Any] = {}
        """What the server said when this worker came."""
        self.over = False
        """Whether it has said that the chief is done."""
        self.stop_by: Deadline | None = None
        """Until when to wait for what has no deadline of its own; set, maybe by another thread,
        once this process is to stop."""
        self.bytes_sent = 0
        self.bytes_received = 0
        self._rank = rank
        self._world_size = world_size
        self._process = process
        self._socket: socket.socket | None = None
        self._heard = 0.0
        self._reader = FrameReader(lambda kind, number, size: new_buffer(size))

    @property
    def name(self) -> str:
        """For messages."""
        return f"ps {self.index} at {self.address[0]}:{self.address[1]}"

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._socket is not None

    def connect(self, deadline: Deadline) -> None:
        """Connect and greet, as often as it takes.

        Raises:
            DeadlineError: it did not work in time; names the server and the last reason.
            EnvironmentFaultError: the server is of another job or version.
        """
        last = "not tried yet"

        def reached() -> bool:
            nonlocal last
            try:
                self._open()
            except TrainkitError:
                raise
            except socket.gaierror:
                last = f"the name {self.address[0]} is not known to DNS"
            except OSError as reason:
                last = reason.strerror or str(reason)
            return self._socket is not None

        wait_until(
            reached,
            what=f"worker {self._rank} to reach {self.name}",
            whom=lambda: last,
            deadline=deadline,
            hint=(
                "Is its pod running, and does its Service exist? TRAINKIT_TIMEOUT sets the seconds."
            ),
        )

    def greet(self) -> None:
        """Ask anew how the server is doing.

        Raises:
            OSError: the connection is lost.
        """
        meta = {
            "server": self.index,
            "world_size": self._world_size,
            "process": self._process,
            "member": True,
        }
        self.send(Kind.HELLO, meta=meta)
        self.welcome = {**self.receive(Kind.WELCOME).meta}
        if self.welcome["over"]:
            raise self._job_over()

    def _open(self) -> None:
        self._socket = connected(self.address)
        self._reader = FrameReader(lambda kind, number, size: new_buffer(size))
        try:
            self.greet()
        except OSError:
            self.close()
            raise
        if self._socket is not None:
            self._socket.settimeout(_SLICE)

    def send(
        self,
        kind: Kind,
        *,
        round: int = -1,
        meta: Mapping[str, Any] | None = None,
        payloads: tuple[memoryview, ...] = (),
    ) -> None:
        """Send a frame.

        Raises:
            OSError: the connection is lost; it is closed then.
        """
        if self._socket is None:
            raise ConnectionResetError("not connected")
        size = sum(map(len, payloads))
        head = memoryview(packed(kind, rank=self._rank, round=round, meta=meta, size=size))
        try:
            for part in (head, *payloads):
                moved = time.monotonic()
                while len(part):
                    try:
                        count = self._socket.send(part)
                    except TimeoutError:
                        if time.monotonic() - moved > _SILENCE:
                            raise
                        continue
                    moved = time.monotonic()
                    self.bytes_sent += count
                    part = part[count:]
        except OSError:
            self._hear_last_words()
            self.close()
            raise

    def receive(self, *kinds: Kind, deadline: Deadline | None = None) -> Frame:
        """Wait for an answer of one of ``kinds``.

        Args:
            kinds: what may come.
            deadline: when to give up; by default the server decides.

        Raises:
            OSError: the connection is lost; it is closed then.
            DeadlineError: ``deadline`` passed.
            PeerLostError: the server has given this worker up.
            EnvironmentFaultError: the server refuses this worker.
            JobOver: the chief is done.
        """
        began, notice, words = time.monotonic(), _NOTICE, f"{self.name} to answer"
        self._heard = began
        while True:
            frame = self._next()
            limit = self.stop_by if deadline is None else deadline
            if limit is not None and limit.passed and (frame is None or frame.kind not in kinds):
                raise DeadlineError(
                    f"worker {self._rank} gave up after {limit.seconds:.0f} s of waiting for "
                    f"{words}. Look at the log of who is missing for the first error; "
                    f"TRAINKIT_TIMEOUT sets the seconds."
                )
            if frame is None:
                continue
            if frame.kind in kinds:
                return frame
            if frame.kind is Kind.WAITING:
                words = _waiting(frame.meta)
                waited = time.monotonic() - began
                if waited >= notice:
                    notice *= 2
                    log.warning("waiting since %.0f s for %s", waited, words)
                if deadline is not None and frame.meta.get("live"):
                    deadline = Deadline(deadline.seconds)  # others train, and their round will end
            else:
                self._heed(frame)
                self.close()
                raise ProtocolError(f"{self.name} answered {frame.kind.name} to something else")

    def _heed(self, frame: Frame) -> None:
        """Raise what a server says without having been asked."""
        if frame.kind is Kind.FAULT:
            self.close()
            message = f"{self.name}: {frame.meta.get('message')}"
            raise (EnvironmentFaultError if frame.meta.get("final") else PeerLostError)(message)
        if frame.kind is Kind.OVER:
            raise self._job_over()

    def _job_over(self) -> JobOver:
        self.over = True
        log.info("worker %d: the chief is done, so this worker ends too", self._rank)
        return JobOver(0)

    def _hear_last_words(self) -> None:
        """What a server said before it hung up counts more than that it did."""
        frame = None
        with contextlib.suppress(OSError):
            while self._socket is not None and frame is None:
                self._socket.setblocking(False)
                count = self._socket.recv_into(self._reader.target)
                if count == 0:
                    return
                frame = self._reader.received(count)
                if frame is not None and frame.kind not in (Kind.FAULT, Kind.OVER):
                    frame = None
        if frame is not None:
            self._heed(frame)

    def _next(self) -> Frame | None:
        """The next frame; None if none was complete for a while."""
        if self._socket is None:
            raise ConnectionResetError("not connected")
        try:
            while True:
                try:
                    count = self._socket.recv_into(self._reader.target)
                except TimeoutError:
                    if time.monotonic() - self._heard > _SILENCE:
                        raise
                    return None
                if count == 0:
                    raise ConnectionResetError("closed by the server")
                self._heard = time.monotonic()
                self.bytes_received += count
                frame = self._reader.received(count)
                if frame is not None:
                    return frame
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Hang up; the server goes on without this worker."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _waiting(meta: Mapping[str, Any]) -> str:
    missing = meta.get("missing") or []
    who = f" (missing: worker {', '.join(map(str, missing))})" if missing else ""
    return f"{meta.get('what')}{who}"
