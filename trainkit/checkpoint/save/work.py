"""One rank's work on one save: its files, then its part, then, on rank 0, the commit."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from trainkit.checkpoint.format.checksums import FileRecord, Hashing, record_of, unchanged
from trainkit.checkpoint.format.layout import MANIFEST, part_path
from trainkit.checkpoint.format.manifest import Manifest, Part, TornManifestError
from trainkit.checkpoint.save.commit import commit, create_once
from trainkit.checkpoint.save.job import Job
from trainkit.errors import InputMissingError, TrainkitError
from trainkit.storage import GradualStorage, Likeness, Ready, Storage
from trainkit.waiting import Deadline

__all__ = ["Put", "carry_out", "patiently", "put_views", "take_up", "write_part"]

log = logging.getLogger(__name__)

T = TypeVar("T")

Put = Callable[[Storage], dict[str, FileRecord]]
"""Writes this rank's files, and tells what it wrote; may be called again after an error."""


def carry_out(storage: Storage, job: Job, put: Put, check: Callable[[], None]) -> None:
    """Do the work; on return this rank's part is durable, and on rank 0 the checkpoint is.

    Args:
        storage: of the root.
        job: what to do.
        put: writes this rank's files.
        check: called while waiting for others; what it raises ends the wait.

    Raises:
        OSError: the storage failed at each attempt.
        TrainkitError: what ``commit`` raises.
    """
    deadline = Deadline(job.timeout)
    write_part(storage, job, put)
    if job.rank == 0 and not patiently(job, lambda: _has(storage, job, MANIFEST)):
        patiently(job, lambda: commit(storage, job, deadline, check))


def write_part(storage: Storage, job: Job, put: Put) -> None:
    """Write this rank's files and then its part, if that is not there yet."""
    path = f"{job.folder.name}/{part_path(job.rank)}"
    if patiently(job, lambda: _has(storage, job, part_path(job.rank))):
        return
    files = patiently(job, lambda: put(storage))
    part = Part(job.rank, files, job.entries, job.division).to_bytes()
    patiently(job, lambda: storage.make_folder(path.rpartition("/")[0]))
    patiently(job, lambda: create_once(storage, path, part))


def put_views(
    storage: Storage,
    job: Job,
    views: Mapping[str, memoryview],
    before: Mapping[str, FileRecord] | None = None,
    ready: Ready = lambda *_: None,
) -> dict[str, FileRecord]:
    """Write files whose bytes are in memory, or on their way there.

    Args:
        storage: to write to.
        job: what is done.
        views: path → bytes.
        before: files of ``job.like``, as this rank wrote them: what did not change since
            then need not be sent again.
        ready: waits for a range of a file's bytes.
    """
    above = f"{job.folder.name}/"
    if isinstance(storage, GradualStorage):
        hashing = Hashing(views, ready)
        storage.write_gradually(
            {above + path: view for path, view in views.items()},
            lambda path, begin, end: hashing.ready(path.removeprefix(above), begin, end),
        )
        return hashing.records()
    for path, view in views.items():
        ready(path, 0, len(view))
    records = {path: record_of(view) for path, view in views.items()}
    alike = {
        above + path: Likeness(f"{job.like}/{path}", ranges)
        for path, record in records.items()
        if before and job.like and path in before and (ranges := unchanged(record, before[path]))
    }
    storage.write_all({above + path: view for path, view in views.items()}, alike or None)
    return records


def take_up(storage: Storage, job: Job, paths: Sequence[str]) -> None:
    """Clear the way for work that another process had begun, and did not live to end.

    A part is created after all files that it lists are durable, so where there is one, and it
    is whole, nothing is left to be written. Where there are no hard links either may be torn,
    and a manifest that is torn is no commit.
    """
    part = f"{job.folder.name}/{part_path(job.rank)}"
    try:
        Part.from_bytes(storage.read(part))
    except InputMissingError:
        pass
    except TornManifestError:
        storage.delete(part)
    else:
        if job.rank == 0:
            _remove_torn(storage, f"{job.folder.name}/{MANIFEST}")
        return
    for path in paths:
        storage.delete(f"{job.folder.name}/{path}")


def _remove_torn(storage: Storage, manifest: str) -> None:
    try:
        Manifest.from_bytes(storage.read(manifest))
    except InputMissingError:
        return
    except TornManifestError:
        storage.delete(manifest)


def _has(storage: Storage, job: Job, path: str) -> bool:
    return storage.size(f"{job.folder.name}/{path}") is not None


def patiently(job: Job, action: Callable[[], T]) -> T:
    """Try again after I/O errors, which may pass: a share that is away, a quota, a full disk."""
    for number in range(job.attempts - 1):
        try:
            return action()
        except OSError as error:
            if isinstance(error, (TrainkitError, FileExistsError)):
                raise
            pause = job.pause * 2**number
            log.warning(
                "saving step %d failed (%s); trying again in %.0f s (attempt %d of %d)",
                job.folder.step,
                error,
                pause,
                number + 2,
                job.attempts,
            )
            time.sleep(pause)
    return action()
