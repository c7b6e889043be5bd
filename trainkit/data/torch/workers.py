"""What a loader's worker process does first."""

import sys
from collections.abc import Callable
from typing import Any

__all__ = ["WorkerStart", "renew_filesystems"]


class WorkerStart:
    """The ``worker_init_fn`` of a sharded loader: our own duties, then the user's function.

    A class of a module's own, so that it can be pickled for spawned workers.
    """

    def __init__(self, then: Callable[[int], Any] | None) -> None:
        """Remember the user's ``worker_init_fn``."""
        self._then = then

    def __call__(self, worker: int) -> None:
        """Prepare this process, which is worker number ``worker`` of its rank."""
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
