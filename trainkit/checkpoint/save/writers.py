"""Two ways to have a job done: beside training, or while training waits."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from trainkit.checkpoint.failure import Failure
from trainkit.checkpoint.format.checksums import ChunkHasher, FileRecord
from trainkit.checkpoint.save.copying import fill
from trainkit.checkpoint.save.files import FileImage
from trainkit.checkpoint.save.job import Job
from trainkit.checkpoint.save.process import WriterProcess
from trainkit.checkpoint.save.tiers import LocalTier, save_everywhere
from trainkit.errors import RetryableError, TrainkitError
from trainkit.frameworks import loaded
from trainkit.resources.memory import memory_left
from trainkit.storage import Storage
from trainkit.waiting import Deadline

__all__ = ["Background", "Foreground", "Work", "Writer"]

log = logging.getLogger(__name__)

_PAGE = 4096
_SHARE = 0.8
"""Part of the memory that is left which an arena may take: training needs some, too."""

_PROCESS = 48 << 20
"""Bytes that the process which writes takes for itself, its buffers among them."""


class Work(Protocol):
    """A job that is being done."""

    def poll(self, seconds: float) -> tuple[bool, Failure | None]:
        """Whether the job has ended, after at most so many seconds, and with what failure."""
        ...

    def cancel(self) -> None:
        """Give up a job that waits for other ranks."""
        ...

    def close(self) -> None:
        """Give everything back; any number of times."""
        ...


class Writer(Work, Protocol):
    """Takes one job at a time."""

    @property
    def kept(self) -> float | None:
        """Seconds until the local tier had this rank's files of the last job; None: it has not."""
        ...

    @property
    def seconds(self) -> float:
        """How long the last job took that has ended, without the copying before it."""
        ...

    def warm(self, size: int) -> None:
        """Prepare for a job of about ``size`` bytes; returns at once."""
        ...

    def submit(
        self, job: Job, images: Sequence[FileImage], check: Callable[[], None], *, urgent: bool
    ) -> None:
        """Take the bytes of ``images``, which may change once this has returned.

        Args:
            job: what to do.
            images: this rank's files.
            check: called while this waits for other ranks; what it raises ends the wait.
            urgent: whether it is the end of the job that somebody waits for, and not this.
        """
        ...


class Foreground:
    """Does a job at once, with no more than a tensor's bytes in memory."""

    def __init__(self, storage: Storage, tier: LocalTier | None) -> None:
        self.kept: float | None = None
        self.seconds = 0.0
        self._began = Deadline(0.0)
        self._storage = storage
        self._tier = tier
        self._failure: Failure | None = None

    def warm(self, size: int) -> None:
        """See ``Writer.warm``: nothing to do."""

    def submit(
        self, job: Job, images: Sequence[FileImage], check: Callable[[], None], *, urgent: bool
    ) -> None:
        """See ``Writer.submit``; what fails is told by ``poll``."""
        # What nobody catches here, such as Ctrl-C, leaves it at that.
        self._failure = Failure.of(job.rank, RetryableError("the save was interrupted"))
        self.kept, self._began = None, Deadline(0.0)
        tried: set[str] = set()

        def put(place: Storage) -> dict[str, FileRecord]:
            again = place.url in tried
            tried.add(place.url)
            return self._put(place, job, images, again)

        try:
            save_everywhere(self._storage, self._tier, job, put, check=check, kept=self._keep)
        except (Exception, TrainkitError) as error:
            log.debug("a save failed", exc_info=error)
            self._failure = Failure.of(job.rank, error)
        else:
            self._failure = None
        self.seconds = self._began.elapsed

    def poll(self, seconds: float) -> tuple[bool, Failure | None]:
        """See ``Work.poll``."""
        return True, self._failure

    def cancel(self) -> None:
        """See ``Work.cancel``: a job is over by then."""

    def close(self) -> None:
        """See ``Work.close``."""

    def _keep(self) -> None:
        self.kept = self._began.elapsed

    def _put(
        self, storage: Storage, job: Job, images: Sequence[FileImage], again: bool
    ) -> dict[str, FileRecord]:
        records = {}
        for image in images:
            hasher = ChunkHasher()
            path = f"{job.folder.name}/{image.path}"
            if again:  # what the attempt before has left
                storage.delete(path)
            storage.write(path, hasher.passing(image.parts()))
            records[image.path] = hasher.record
        return records


class Background:
    """Copies the bytes, and has another process write them."""

    def __init__(self, storage: Storage, tier: LocalTier | None) -> None:
        self._process = WriterProcess(storage.url, tier)
        self._foreground = Foreground(storage, tier)
        self._current: WriterProcess | Foreground = self._process
        self._preparing: threading.Thread | None = None

    @property
    def kept(self) -> float | None:
        """See ``Writer.kept``."""
        return self._current.kept

    @property
    def seconds(self) -> float:
        """See ``Writer.seconds``."""
        return self._current.seconds

    def warm(self, size: int) -> None:
        """See ``Writer.warm``: the other process starts, and fetches the memory."""
        if self._has_room(size):
            self._process.arena.reserve(size)
        self._process.start()
        gpu = None
        if loaded("torch"):
            from trainkit.checkpoint.save.torch import current_gpu

            gpu = current_gpu()
        # Seconds for tens of gigabytes, which training need not wait for.
        prepare = threading.Thread(target=self._prepare, args=(gpu,), name="trainkit-arena")
        self._preparing = prepare
        prepare.start()

    def submit(
        self, job: Job, images: Sequence[FileImage], check: Callable[[], None], *, urgent: bool
    ) -> None:
        """See ``Writer.submit``: one that is urgent is written while it is copied."""
        self._await_arena()
        files, size = _placed(images)
        if not self._has_room(size):
            self._current = self._foreground
            self._foreground.submit(job, images, check, urgent=urgent)
            return
        process = self._current = self._process
        process.make_ready()
        placed = [(files[image.path][0], image) for image in images]
        if not urgent:
            fill(process.arena, placed, size)
            process.submit(job, files, size)
            return
        process.arena.reserve(size)
        try:
            process.submit(job, files, 0)
            fill(process.arena, placed, size, process.tell_filled)
        except BaseException:
            process.make_ready()  # or it would wait for bytes that do not come
            raise

    def poll(self, seconds: float) -> tuple[bool, Failure | None]:
        """See ``Work.poll``."""
        return self._current.poll(seconds)

    def cancel(self) -> None:
        """See ``Work.cancel``."""
        self._current.cancel()

    def close(self) -> None:
        """See ``Work.close``."""
        self._await_arena()
        self._process.close()

    def _prepare(self, gpu: int | None) -> None:
        try:
            self._process.arena.populate()
            if gpu is not None:
                from trainkit.checkpoint.save.torch import pin

                pin(self._process.arena, gpu)
        except (OSError, ValueError, RuntimeError) as error:  # the save itself will find it
            log.debug("the memory of saves could not be prepared: %s", error)

    def _await_arena(self) -> None:
        if self._preparing is not None:
            self._preparing.join()
            self._preparing = None

    def _has_room(self, size: int) -> bool:
        more = size - self._process.arena.size
        left = memory_left() if more > 0 else None
        if left is None or more + _PROCESS <= left * _SHARE:
            return True
        log.warning(
            "a copy of %.0f MiB does not fit into the memory that is left (%.0f MiB): training "
            "waits until the checkpoint is written. A higher memory limit avoids that.",
            size / 2**20,
            left / 2**20,
        )
        return False


def _placed(images: Sequence[FileImage]) -> tuple[dict[str, tuple[int, int]], int]:
    """Offset and size of each file in an arena, on page boundaries, and the bytes in all."""
    files, end = {}, 0
    for image in images:
        files[image.path] = (end, image.size)
        end += -(-image.size // _PAGE) * _PAGE
    return files, end
