"""The life of a ps process: serve until the job is over, or until somebody wants it to stop."""

import logging
import os
import signal
import time
from contextlib import suppress

from trainkit import config
from trainkit.errors import DeadlineError, ExitCode, Preempted
from trainkit.lifecycle.preemption import NoticeListener
from trainkit.strategies.torch.local_sgd.addresses import Address
from trainkit.strategies.torch.local_sgd.control_link import ControlLink
from trainkit.strategies.torch.local_sgd.server import ShardServer
from trainkit.strategies.torch.local_sgd.sockets import listen

__all__ = ["serve_shard"]

log = logging.getLogger(__name__)

_TURN = 0.5
"""Seconds of one turn of the loop in which nothing happens."""
_GOODBYE = 30.0
"""Seconds that workers get to end by themselves once the chief is done."""
_MARGIN = 3.0
"""Seconds of the grace period that are kept for this process's own end."""


def serve_shard(
    index: int, addresses: list[Address], world_size: int, timeout: float, *, observed: bool = False
) -> None:
    """Serve shard ``index`` until the chief is done; on the main thread.

    Args:
        index: of this server.
        addresses: of all servers.
        world_size: workers of the job.
        timeout: seconds without any worker after which the job is given up, and seconds that a
            worker may stay behind in a round.
        observed: whether a process waits for the job's end here, which is to hear of it, if it
            comes within ``timeout`` seconds.

    Raises:
        DeadlineError: no worker is left, or none ever came.
        Preempted: the job was asked to stop, and the workers have left.
    """
    settings = config.settings()
    server = ShardServer(listen(addresses[index][1]), index, patience=timeout)
    server.rounds.world_size = world_size
    life = _Life(server, index, addresses, settings.grace_period)
    life.observer_by = timeout if observed else 0.0
    wake_read, wake_write = os.pipe()

    def heard(number: signal.Signals) -> None:
        life.notice, life.noticed = number, time.monotonic()
        os.write(wake_write, b"x")

    listener = NoticeListener(
        dict.fromkeys((*settings.preemption_signals, signal.SIGINT)),
        on_notice=heard,
        on_main_thread=lambda number: None,
    )
    listener.start()
    log.info("ps %d of %d serves on port %d", index, len(addresses), addresses[index][1])
    try:
        server.wake_by(wake_read)
        while not life.is_over(timeout):
            server.turn(_TURN)
        server.dismiss()
        log.info("ps %d: the chief is done after %s rounds", index, server.rounds.round)
    finally:
        server.close()
        listener.close()
        os.close(wake_read)
        os.close(wake_write)


class _Life:
    """When a server ends, and how."""

    def __init__(
        self, server: ShardServer, index: int, addresses: list[Address], grace_period: float
    ) -> None:
        self._server = server
        self._index = index
        self._first = addresses[0]
        self._grace = grace_period
        self._done_at: float | None = None
        self._passed_on = False
        self._told = False
        self.notice: signal.Signals | None = None
        self.noticed = 0.0
        self.observer_by = 0.0
        """Seconds after the job's end until which who observes it is waited for."""

    def is_over(self, timeout: float) -> bool:
        """Whether the chief is done and nobody needs this server any more."""
        server, now = self._server, time.monotonic()
        if self.notice is not None and not server.over:
            self._stop(now)
        if server.over:
            self._done_at = now if self._done_at is None else self._done_at
            return self._all_have_heard(now - self._done_at)
        if server.vote.hold and not server.workers and self.notice is None:
            raise self._preempted("the job was asked to stop, and all workers have left")
        if not server.workers and now - server.empty_since >= timeout:
            raise DeadlineError(
                f"ps {self._index}: no worker for {timeout:.0f} s (expected "
                f"{server.rounds.world_size}, found none). Look at the logs of the chief and the "
                f"workers for the first error; TRAINKIT_TIMEOUT sets the seconds."
            )
        return False

    def _all_have_heard(self, since: float) -> bool:
        """Whether nobody is left to be told, ``since`` seconds after the job's end."""
        workers = self._server.workers
        if workers and since < _GOODBYE:
            return False
        if since < self.observer_by and not self._server.is_observed and self.notice is None:
            if not self._told:
                self._told = True
                log.info("the job is over; its scheduler has not come yet, and is to hear of it")
            return False
        if workers:
            log.warning("the chief is done; not waited for any more: worker %s", workers)
        return True

    def _stop(self, now: float) -> None:
        """After a notice: the workers stop together and the chief saves, then this ends too."""
        if not self._passed_on:
            self._passed_on = True
            self._server.vote.hold = True
            if self._index != 0:  # the first server is the one that workers look at
                first = ControlLink(self._first, 0, timeout=2.0)
                with suppress(OSError):
                    first.ask(what="hold")
                first.close()
        if not self._server.workers:
            raise self._preempted("stopped as asked; no worker is left")
        if now - self.noticed >= max(1.0, self._grace - _MARGIN):
            raise self._preempted(
                f"stopped as asked, with worker(s) {self._server.workers} still there"
            )

    def _preempted(self, words: str) -> Preempted:
        code = ExitCode.INTERRUPTED if self.notice is signal.SIGINT else ExitCode.PREEMPTED
        return Preempted(f"ps {self._index}: {words}", exit_code=code)
