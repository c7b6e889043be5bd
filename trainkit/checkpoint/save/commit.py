"""The commit: rank 0 waits for the parts of all ranks and creates the manifest.

Ranks meet in the storage and nowhere else, so a commit needs no collective call, cannot get
into the way of one, and knows who is missing.
"""

import datetime
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from trainkit.checkpoint.format.catalog import step_folders
from trainkit.checkpoint.format.checksums import FileRecord, record_of
from trainkit.checkpoint.format.layout import MANIFEST, RANKS, part_path
from trainkit.checkpoint.format.manifest import Entry, Manifest, Part, TornManifestError
from trainkit.checkpoint.save.generation import refuse_overtaken
from trainkit.checkpoint.save.job import Job
from trainkit.errors import InputMissingError, UsageError
from trainkit.storage import Storage
from trainkit.waiting import Deadline, backoff, wait_until

__all__ = ["commit", "create_once", "other_tensors"]

_READERS = 16
"""Parts that are read at the same time: in an object store each takes a while."""

_SUSPICION = 1.0
"""Seconds without a part after which to look whether ranks save something else."""


def commit(storage: Storage, job: Job, deadline: Deadline, check: Callable[[], None]) -> None:
    """Create the manifest once the part of every rank is there; again after an error.

    Args:
        storage: of the root.
        job: of rank 0.
        deadline: for all parts to be there.
        check: called while waiting; what it raises ends the wait.

    Raises:
        DeadlineError: parts are missing; the message names their ranks.
        UsageError: ranks save different steps or different states.
        EnvironmentFaultError: another run has taken over the root.
        CheckpointDamagedError: a part is not what its rank wrote.
    """
    parts = _Parts(storage, job)

    def complete() -> bool:
        check()
        return parts.look()

    wait_until(
        complete,
        what=f"the parts of step {job.folder.step} in {storage.url}/{job.folder.name}/{RANKS}",
        whom=lambda: f"rank(s) {_listed(parts.missing)} of {job.world_size}",
        deadline=deadline,
        pauses=backoff(0.002),
        hint="Look at the log of the missing rank(s) for the first error.",
    )
    parts.check_same_division()
    refuse_overtaken(storage, job.folder.generation)
    files: dict[str, FileRecord] = {}
    entries: dict[str, Entry] = {}
    for rank, (data, part) in sorted(parts.found.items()):
        files.update(part.files)
        files[part_path(rank)] = record_of(data)
        entries.update(part.entries)
    manifest = Manifest(
        step=job.folder.step,
        generation=job.folder.generation,
        attempt=job.folder.attempt,
        world_size=job.world_size,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        written_by=job.written_by,
        files=files,
        entries=entries,
        metrics=job.metrics,
    )
    create_once(storage, f"{job.folder.name}/{MANIFEST}", manifest.to_bytes())


def create_once(storage: Storage, path: str, data: bytes) -> None:
    """Create an object whose creation may have been tried before, with an error for an answer.

    Raises:
        FileExistsError: it is there, and says something else.
    """
    try:
        storage.create(path, data)
    except FileExistsError:
        if storage.read(path) != data:
            raise


def other_tensors(ranks: Iterable[int]) -> UsageError:
    """What to raise where ``ranks`` save other tensors than rank 0."""
    return UsageError(
        f"ranks hold different tensors: those of rank(s) {_listed(ranks)} are not those of rank 0 "
        f"in name, shape or element type. Entries of the state have to be the same on all ranks; "
        f"mark with PerRank what each rank has its own of."
    )


class _Parts:
    """The parts that have been seen so far."""

    def __init__(self, storage: Storage, job: Job) -> None:
        self.found: dict[int, tuple[bytes, Part]] = {}
        self._storage = storage
        self._job = job
        self._since = Deadline(_SUSPICION)

    @property
    def missing(self) -> list[int]:
        """Ranks without one."""
        return [rank for rank in range(self._job.world_size) if rank not in self.found]

    def look(self) -> bool:
        """Read those that are new; whether all are there."""
        folder = self._job.folder.name
        there = set(self._storage.names(f"{folder}/{RANKS}"))
        new = [rank for rank in self.missing if part_path(rank).rpartition("/")[2] in there]
        self._read(new)
        if new:
            self._since = Deadline(_SUSPICION)
        elif self._since.passed:
            self._since = Deadline(_SUSPICION)
            self._refuse_other_steps()
        return len(self.found) == self._job.world_size

    def check_same_division(self) -> None:
        """Refuse parts of states that were not divided in the same way."""
        divisions = {rank: part.division for rank, (_, part) in self.found.items()}
        others = [rank for rank, division in divisions.items() if division != self._job.division]
        if others:
            raise other_tensors(others)

    def _read(self, ranks: list[int]) -> None:
        if len(ranks) < 4:
            for rank in ranks:
                self._read_one(rank)
            return
        with ThreadPoolExecutor(_READERS, thread_name_prefix="trainkit-parts") as pool:
            list(pool.map(self._read_one, ranks))

    def _read_one(self, rank: int) -> None:
        try:
            data = self._storage.read(f"{self._job.folder.name}/{part_path(rank)}")
            self.found[rank] = data, Part.from_bytes(data)
        except (InputMissingError, TornManifestError):
            # A listing may be ahead of a read, and without hard links a file is seen before
            # it is whole.
            return

    def _refuse_other_steps(self) -> None:
        own = self._job.folder
        for other in step_folders(self._storage):
            if other.age != own.age or other.step == own.step:
                continue
            ranks = [_rank_of(name) for name in self._storage.names(f"{other.name}/{RANKS}")]
            known = _listed(sorted({rank for rank in ranks if rank is not None}))
            raise UsageError(
                f"ranks save different steps: rank 0 saves {own.step}, and rank(s) "
                f"{known or 'not known yet'} {other.step}. Every rank has to call save() and "
                f"step() after the same steps."
            )


def _rank_of(name: str) -> int | None:
    digits = name.removeprefix("rank").partition(".")[0]
    return int(digits) if digits.isdecimal() else None


def _listed(ranks: Iterable[int]) -> str:
    return ", ".join(map(str, ranks))
