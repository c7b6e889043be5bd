"""Inside the writer process: messages in, files out."""

import logging
import mmap
import os
import select
import signal
import socket
import threading
import time
from dataclasses import asdict
from typing import Any

from trainkit.checkpoint.failure import Failure
from trainkit.checkpoint.format.checksums import FileRecord
from trainkit.checkpoint.save.arena import mapped
from trainkit.checkpoint.save.job import Job
from trainkit.checkpoint.save.messages import receive, send
from trainkit.checkpoint.save.tiers import LocalTier, save_everywhere
from trainkit.checkpoint.save.work import put_views, take_up
from trainkit.errors import TrainkitError
from trainkit.storage import Storage, open_storage

__all__ = ["main"]

_LOOK = 1.0
"""Seconds after which to look whether the process that started this one is still there: a
process that it forked may hold the connection open after its death."""


class GivenUpError(Exception):
    """The other side asked to give the work up."""


def main(descriptor: int, url: str, tier: LocalTier | None) -> None:
    """Serve the connection ``descriptor`` until its other side is gone.

    Saves go to the local tier, if there is one, and to ``url``. Signals that ask to stop are for
    the training process, which ends this one; in a pod or a terminal they reach both.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
    parent = os.getppid()
    with socket.socket(fileno=descriptor) as connection:
        worker = _Worker(connection, url, tier)
        while os.getppid() == parent:
            if not select.select([connection], [], [], _LOOK)[0]:
                continue
            try:
                worker.take(*receive(connection))
            except (EOFError, ConnectionError):
                break
    # Not a return: the work may be in the middle of a write, and nobody waits for it any more.
    os._exit(0)


class _Worker:
    """Does one piece of work at a time, on a thread beside the one that listens."""

    def __init__(self, connection: socket.socket, url: str, tier: LocalTier | None) -> None:
        self._connection = connection
        self._url = url
        self._tier = tier
        self._storage: Storage | None = None
        self._memory: mmap.mmap | None = None
        self._given_up = False
        self._filled = 0
        """Bytes of the memory that are what is to be saved, from its beginning on."""
        self._news = threading.Condition()
        """Of the two above."""
        self._since = 0.0
        """When the work had all bytes, from which moment on its time is counted."""
        self._sent: tuple[str, dict[str, FileRecord]] | None = None
        """The step folder that went to the root last, and this rank's files in it."""

    def take(self, message: dict[str, Any], descriptor: int | None) -> None:
        """Act upon a message."""
        if message["do"] == "cancel":
            with self._news:
                self._given_up = True
                self._news.notify_all()
        elif message["do"] == "filled":
            with self._news:
                self._filled, self._since = message["filled"], time.monotonic()
                self._news.notify_all()
        elif message["do"] == "map" and descriptor is not None:
            self._memory = mapped(descriptor, message["size"])
            os.close(descriptor)
        else:
            self._given_up, self._filled = False, message["filled"]
            self._since = time.monotonic()
            threading.Thread(target=self._work, args=(message,), daemon=True).start()

    def _work(self, message: dict[str, Any]) -> None:
        job = Job.from_json(message["job"])
        failure = None
        try:
            self._save(job, message["files"], again=message["again"])
        except (Exception, TrainkitError) as error:
            if not isinstance(error, (TrainkitError, OSError, GivenUpError)):
                logging.getLogger(__name__).exception("saving step %d failed", job.folder.step)
            failure = asdict(Failure.of(job.rank, error))
        self._tell({"failure": failure, "seconds": time.monotonic() - self._since})

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            send(self._connection, message)
        except OSError:
            os._exit(0)  # nobody is there any more

    def _save(self, job: Job, files: dict[str, list[int]], *, again: bool) -> None:
        if self._storage is None:
            self._storage = open_storage(self._url)
        storage, tier = self._storage, self._tier
        if again:
            begun = [storage] if job.upload else []
            for place in (*begun, *(() if tier is None else (tier.storage(),))):
                take_up(place, job, list(files))
        with memoryview(self._memory or b"") as memory:
            views = {path: memory[begin : begin + size] for path, (begin, size) in files.items()}

            def ready(path: str, begin: int, end: int) -> None:
                self._await_filled(files[path][0] + end)

            def put(place: Storage) -> dict[str, FileRecord]:
                if place is not storage:
                    return put_views(place, job, views, ready=ready)
                before = self._sent[1] if self._sent and self._sent[0] == job.like else None
                records = put_views(place, job, views, before, ready)
                self._sent = job.folder.name, records
                return records

            try:
                save_everywhere(
                    storage,
                    tier,
                    job,
                    put,
                    check=self._check,
                    kept=lambda: self._tell({"kept": time.monotonic() - self._since}),
                )
            finally:
                for view in views.values():
                    view.release()

    def _await_filled(self, size: int) -> None:
        """Wait until so many bytes of the memory are what is to be saved."""
        if self._filled >= size:
            return
        with self._news:
            while self._filled < size:
                self._check()
                self._news.wait()

    def _check(self) -> None:
        if self._given_up:
            raise GivenUpError("given up, since another rank failed")
