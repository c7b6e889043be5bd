"""The process that writes: started before the first save needs it, and again if it dies."""

import contextlib
import json
import logging
import os
import select
import socket
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from trainkit.checkpoint.failure import Failure
from trainkit.checkpoint.save.arena import Arena
from trainkit.checkpoint.save.job import Job
from trainkit.checkpoint.save.messages import receive, send
from trainkit.checkpoint.save.tiers import LocalTier
from trainkit.errors import RetryableError

__all__ = ["WriterProcess"]

log = logging.getLogger(__name__)

_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from trainkit.checkpoint.save.tiers import LocalTier
from trainkit.checkpoint.save.worker import main
tier = json.loads(sys.argv[4])
main(int(sys.argv[2]), sys.argv[3], tier and LocalTier(**tier))
"""
_LIVES = 2
"""How many processes may die over one save before it has failed."""

_PATIENCE = 10.0
"""Seconds that a process is given to end, once it can see that it should."""


class WriterProcess:
    """Writes what lies in an arena, one save at a time, while training goes on.

    It loads no framework and keeps nothing but the arena, so it starts within a fraction of a
    second, and it ends with the process that started it.
    """

    def __init__(self, url: str, tier: LocalTier | None) -> None:
        """Nothing is started yet.

        Args:
            url: of the storage that it opens by itself.
            tier: where saves go before, if anywhere.
        """
        self.arena = Arena()
        self.kept: float | None = None
        """Seconds until the local tier had what was submitted last; None if it has not."""
        self.seconds = 0.0
        """That the last work took."""
        self._url = url
        self._tier = tier
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._shared = 0
        self._work: dict[str, Any] | None = None
        self._deaths = 0
        self._rank = 0

    def start(self) -> None:
        """Start the process, and have it fetch the arena's memory; neither is waited for."""
        try:
            self._hand_over()
        except OSError:
            self._revive()

    def submit(self, job: Job, files: dict[str, tuple[int, int]], filled: int) -> None:
        """Have ``job`` done.

        Args:
            job: what to do.
            files: path → offset and size of its bytes in the arena, which stay as they are
                until the work is done.
            filled: bytes of the arena, from its beginning on, that are there; of further ones
                ``tell_filled`` tells.
        """
        self._rank = job.rank
        self._work = {
            "do": "save",
            "job": job.to_json(),
            "files": files,
            "filled": filled,
            "again": False,
        }
        self._deaths = 0
        self.kept = None
        self.start()

    def tell_filled(self, filled: int) -> None:
        """Say that more bytes of the arena are there."""
        if self._work is None:
            return
        self._work["filled"] = filled  # for a process that takes the work up
        with contextlib.suppress(OSError):  # it is dead, which the next poll finds
            self._send({"do": "filled", "filled": filled})

    def make_ready(self) -> None:
        """End work that is still under way: the bytes that it writes are about to change."""
        if self._work is not None:
            self._end()
            self._work = None

    def cancel(self) -> None:
        """Ask to give the work up; it may be done all the same, as its result tells."""
        try:
            self._send({"do": "cancel"})
        except OSError:  # it is dead, which the next poll finds
            return

    def poll(self, seconds: float) -> tuple[bool, Failure | None]:
        """Wait for the work to end, at most so long.

        Returns:
            Whether it has ended, and with what failure.
        """
        if self._work is None:
            return True, None
        try:
            if self._socket is None or not select.select([self._socket], [], [], seconds)[0]:
                return False, None
            message, _ = receive(self._socket)
        except (OSError, EOFError):
            return self._died()
        if "failure" not in message:
            self.kept = message["kept"]
            return False, None
        self.seconds = message["seconds"]
        self._work = None
        failure = message["failure"]
        return True, None if failure is None else Failure(**failure)

    def close(self) -> None:
        """End it, work or not, and give the arena back; any number of times."""
        if os.getpid() == self._owner:
            self._end()
        elif self._socket is not None:  # a forked child's copy
            self._socket.close()
        self._work = None
        self.arena.close()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # The import path of this process, as multiprocessing's spawned children have it,
            # and -P, or the current folder could put itself before it. A session of its own
            # keeps Ctrl-C and a launcher's signals to the group away: what is being saved then
            # is what the signal is about.
            self._process = subprocess.Popen(  # noqa: S603 - this very interpreter
                [sys.executable, "-P", "-c", _START, *self._arguments(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._socket = ours
        self._shared = 0

    def _arguments(self, descriptor: int) -> list[str]:
        path = [os.path.abspath(entry) for entry in sys.path]
        tier = self._tier and asdict(self._tier)
        return [json.dumps(path), str(descriptor), self._url, json.dumps(tier)]

    def _hand_over(self) -> None:
        if self._socket is None:
            self._start()
        if self.arena.size > self._shared:
            self._send({"do": "map", "size": self.arena.size}, self.arena.descriptor)
            self._shared = self.arena.size
        if self._work is not None:
            self._send(self._work)

    def _send(self, message: dict[str, Any], descriptor: int | None = None) -> None:
        if self._socket is None:
            raise BrokenPipeError("closed")
        send(self._socket, message, descriptor)

    def _died(self) -> tuple[bool, Failure | None]:
        self._deaths += 1
        code = self._end()
        if self._deaths >= _LIVES:
            self._work = None
            text = f"the process that writes checkpoints died {self._deaths} times (exit {code})"
            return True, Failure.of(self._rank, RetryableError(text))
        log.warning("the process that writes checkpoints died (exit %s); it is started again", code)
        self._revive()
        return False, None

    def _revive(self) -> None:
        """Start another process, which takes up the work."""
        self._end()
        if self._work is not None:
            self._work["again"] = True
        try:
            self._hand_over()
        except OSError as error:  # dead again; the next poll counts it
            log.debug("a new writer process is gone already: %s", error)

    def _end(self) -> int | None:
        """End the process, and say how it ended."""
        if self._socket is not None:
            self._socket.close()  # which it takes for the end, as it would our death
            self._socket = None
        if self._process is None:
            return None
        try:
            return self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            self._process = None
