"""A checkpoint of a local tier that goes to the root as it is, beside training."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from trainkit.checkpoint.failure import Failure
from trainkit.checkpoint.format.catalog import read_manifest
from trainkit.checkpoint.format.checksums import FileRecord
from trainkit.checkpoint.format.layout import MANIFEST, StepFolder
from trainkit.checkpoint.load.files import read_verified, verified_chunks
from trainkit.checkpoint.save.commit import create_once
from trainkit.checkpoint.save.generation import refuse_overtaken
from trainkit.checkpoint.save.job import Job
from trainkit.checkpoint.save.work import patiently
from trainkit.errors import RetryableError, TrainkitError
from trainkit.storage import Storage

__all__ = ["Copier", "copy_files"]

log = logging.getLogger(__name__)

_BATCH = 256 << 20
"""Bytes that are in memory at a time."""

_PATIENCE = 5.0
"""Seconds that a copy is given to notice that nobody wants it any more."""


def copy_files(
    source: Storage,
    before: str,
    target: Storage,
    after: str,
    files: Mapping[str, FileRecord],
    job: Job,
    check: Callable[[], None],
) -> None:
    """Copy files of a step folder, of which every byte is verified on the way.

    Args:
        source: where they lie.
        before: name of the folder there.
        target: where they are to be.
        after: name of the folder there.
        files: path → what the manifest or the part says of it.
        job: says how often to try.
        check: called between two batches; what it raises ends the work.

    Raises:
        CheckpointDamagedError: bytes are not those that were saved.
        OSError: a storage failed at each attempt.
    """
    for batch in _batches(files):
        again = iter((False,))

        def put(batch: list[str] = batch, again: Iterator[bool] = again) -> None:
            check()
            if next(again, True):  # what the attempt before has left
                for path in batch:
                    target.delete(f"{after}/{path}")
            if files[batch[0]].size > _BATCH:  # one by itself, which memory may not hold
                chunks = verified_chunks(source, f"{before}/{batch[0]}", files[batch[0]])
                target.write(f"{after}/{batch[0]}", chunks)
                return
            data = {path: read_verified(source, f"{before}/{path}", files[path]) for path in batch}
            target.write_all({f"{after}/{path}": view for path, view in data.items()})

        patiently(job, put)


class Copier:
    """``Work`` that begins at once: rank 0 copies, all others rest."""

    def __init__(self, near: Storage, source: StepFolder, root: Storage, job: Job) -> None:
        """Begin.

        Args:
            near: of the tier, which all ranks see.
            source: the committed step there.
            root: where it is to be committed, too.
            job: names the target, and says how often to try.
        """
        self._near = near
        self._source = source
        self._root = root
        self._job = job
        self._failure: Failure | None = None
        self._given_up = threading.Event()
        self._thread: threading.Thread | None = None
        if job.rank == 0:
            # Who ends without closing waits for a while, as for any save, and not for ever.
            self._thread = threading.Thread(target=self._work, name="trainkit-copier", daemon=True)
            self._thread.start()

    def poll(self, seconds: float) -> tuple[bool, Failure | None]:
        """See ``Work.poll``."""
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False, None
        return True, self._failure

    def cancel(self) -> None:
        """See ``Work.cancel``; waits for a moment, so that what is left can be removed."""
        self._given_up.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE)

    def close(self) -> None:
        """See ``Work.close``."""
        self.cancel()

    def _work(self) -> None:
        try:
            self._copy()
        except (Exception, TrainkitError) as error:
            log.debug("a copy failed", exc_info=error)
            self._failure = Failure.of(self._job.rank, error)

    def _copy(self) -> None:
        root, job, target = self._root, self._job, self._job.folder
        manifest = read_manifest(self._near, self._source)
        copy_files(
            self._near, self._source.name, root, target.name, manifest.files, job, self._check
        )
        refuse_overtaken(root, target.generation)
        self._check()
        mine = replace(manifest, generation=target.generation, attempt=target.attempt)
        path, data = f"{target.name}/{MANIFEST}", mine.to_bytes()
        patiently(job, lambda: create_once(root, path, data))

    def _check(self) -> None:
        if self._given_up.is_set():
            raise RetryableError("the copy was given up")


def _batches(files: Mapping[str, FileRecord]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for path in sorted(files):
        if batch and size + files[path].size > _BATCH:
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += files[path].size
    if batch:
        yield batch
