"""What a loader's worker process does first."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from trainkit.config import settings
from trainkit.resources.cpus import cpu_limit

__all__ = ["WorkerStart", "renew_filesystems", "warn_of_too_many"]

log = logging.getLogger("trainkit")


def warn_of_too_many(workers: int, ranks: int) -> None:
    """Say where loaders start more processes than this container may use CPUs.

    torch says so too, but of the CPUs of the host: it does not see the limit of a pod.

    Args:
        workers: of one loader.
        ranks: of this host, each with such a loader.
    """
    limit, source = cpu_limit()
    if workers * ranks > max(limit, ranks):
        log.warning(
            "%d loader workers for each of %d rank(s) here, and %g CPUs (%s): they take turns. "
            "num_workers=%d fits; or raise resources.limits.cpu",
            workers,
            ranks,
            limit,
            source,
            max(1, int(limit) // ranks),
        )


class WorkerStart:
    """The ``worker_init_fn`` of a sharded loader: our own duties, then the user's function.

    A class of a module's own, so that it can be pickled for spawned workers.
    """

    def __init__(self, then: Callable[[int], Any] | None) -> None:
        """Remember the user's ``worker_init_fn``."""
        self._then = then
        self._heard: tuple[signal.Signals, ...] = ()

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Open while workers start: they are born deaf to the notices that the rank listens for.

        The rank itself hears them a moment later, or at once through another of its threads.
        """
        plain = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler, None)
        notices = {*settings().preemption_signals, signal.SIGINT, signal.SIGTERM}
        self._heard = tuple(s for s in notices if signal.getsignal(s) not in plain)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self._heard)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __call__(self, worker: int) -> None:
        """Prepare this process, which is worker number ``worker`` of its rank."""
        if self._heard:
            _leave_notices_to_the_rank(self._heard)
        renew_filesystems()
        if self._then is not None:
            self._then(worker)


def renew_filesystems() -> None:
    """Forget fsspec's remote file systems, so that this process makes its own.

    They talk through an event loop in a thread of the process that made them, and threads do
    not survive a fork: using one here would wait for ever.
    """
    asyn = sys.modules.get("fsspec.asyn")
    if asyn is None:
        return
    if callable(reset := getattr(asyn, "reset_lock", None)):
        reset()
    waiting = [asyn.AsyncFileSystem]
    while waiting:
        filesystem = waiting.pop()
        waiting += filesystem.__subclasses__()
        filesystem.clear_instance_cache()


def _leave_notices_to_the_rank(signals: tuple[signal.Signals, ...]) -> None:
    """Outlive the notices to stop that the rank hears too.

    Slurm and terminals signal every process of a job. A worker that died of it would take the
    rank's last steps and its checkpoint along; the rank ends its workers itself, by SIGTERM.
    """
    # Inherited by fork, and shared: what this process hears would wake the rank.
    signal.set_wakeup_fd(-1)
    ignored = {number for number in signals if number != signal.SIGTERM}
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)
    if signal.SIGTERM in signals:
        # It stays blocked, and a thread takes it, because only that tells who sent it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_rank_says, daemon=True).start()


def _end_when_the_rank_says() -> None:
    rank = multiprocessing.parent_process()
    while True:
        notice = signal.sigwaitinfo({signal.SIGTERM})
        if rank is None or notice.si_pid == rank.pid:
            os._exit(0)
