"""What only the nodes still have of a run that was killed: read, and saved to the root."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from trainkit.checkpoint.agreement import on_all_ranks
from trainkit.checkpoint.copier import copy_files
from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.checksums import FileRecord
from trainkit.checkpoint.format.layout import MANIFEST, StepFolder
from trainkit.checkpoint.format.manifest import Part
from trainkit.checkpoint.load.files import verified_chunks
from trainkit.checkpoint.options import CheckpointOptions
from trainkit.checkpoint.save.commit import commit
from trainkit.checkpoint.save.job import Job
from trainkit.checkpoint.save.retention import discard_step
from trainkit.checkpoint.save.tiers import LocalTier, jobs_in
from trainkit.checkpoint.save.work import write_part
from trainkit.checkpoint.tiers import clear_tier
from trainkit.coordination import Communicator
from trainkit.errors import CheckpointDamagedError, TrainkitError, UsageError
from trainkit.storage import Storage
from trainkit.waiting import Deadline

__all__ = ["upload_leftover"]

log = logging.getLogger(__name__)

_SETTLED_BY_ANOTHER_SAVE = (UsageError, CheckpointDamagedError)
"""What a leftover may fail with that the next start would find again."""


@dataclass(frozen=True, slots=True)
class _Held:
    """What one rank sees of a step on its node."""

    world_size: int
    divisions: Mapping[int, str]
    """Rank that wrote → checksum of how tensors were divided."""


_NOTHING = _Held(0, {})


def upload_leftover(
    tier: LocalTier,
    root: Storage,
    communicator: Communicator,
    options: CheckpointOptions,
    name: Callable[[int], StepFolder],
) -> bool:
    """Save what only the nodes have, each some ranks' files of it; called by every rank.

    It is saved as the save that was cut off would have done, whatever the ranks are now, but
    under a name of this run's: a process of the run before may still be writing the old one. What
    all ranks see committed in a shared tier is left: it is restored from as it is.

    Args:
        tier: of this rank.
        root: the storage of all ranks.
        communicator: of the ranks.
        options: time limits.
        name: gives the folder of the next attempt to save a step.

    Returns:
        Whether a step was saved.

    Raises:
        OSError: the root cannot be read or written, on some rank.
        EnvironmentFaultError: another run has taken over the root.
    """
    timeout = options.timeout

    def look() -> tuple[tuple[int, int], dict[StepFolder, _Held] | None]:
        committed = catalog.committed(root) if communicator.rank == 0 else []
        return committed[0].age if committed else (0, -1), _held(tier)

    looks = on_all_ranks(communicator, look, timeout=timeout).check()
    newest, seen = looks[0][0], [found or {} for _, found in looks]
    done, sick = False, any(found is None for _, found in looks)
    folders = {folder for held in seen for folder in held if folder.age > newest}
    for folder in sorted(folders, key=lambda folder: folder.age, reverse=True):
        held = [found.get(folder, _NOTHING) for found in seen]
        missing = _missing(held)
        if missing:
            log.warning("step %d on the nodes is passed over: %s", folder.step, missing)
            continue
        mine = _mine(held, communicator.rank)
        load = partial(_verified, tier, folder, mine)
        verified = on_all_ranks(communicator, load, timeout=timeout)
        for number in range(options.attempts - 1):
            if not verified.io_only:
                break
            time.sleep(options.pause * 2**number)
            verified = on_all_ranks(communicator, load, timeout=timeout)
        if verified.failures:
            # What could not be read now stays: it may be whole.
            sick = sick or verified.failures[0].kind != CheckpointDamagedError.__name__
            reason = verified.failures[0].text
            log.warning("step %d on the nodes is passed over: %s", folder.step, reason)
            continue
        chief = next(found for found in verified.check() if found is not None)
        job = replace(
            Job.from_json(chief),
            folder=name(folder.step),
            upload=True,
            like=None,
            leave=None,
            timeout=timeout,
            attempts=options.attempts,
            pause=options.pause,
        )
        if communicator.rank == 0:
            log.warning("step %d is only on the nodes; it goes to %s", folder.step, root.url)
        done = _upload(tier, folder, mine, root, communicator, job)
        if done:
            break
    if not tier.shared and not sick:  # the root has all that can still be had
        clear_tier(tier)
    return done


def _held(tier: LocalTier) -> dict[StepFolder, _Held] | None:
    """Steps of which this node has whole parts of ranks, and whose; None: it cannot be read."""
    storage = tier.storage()
    found: dict[StepFolder, _Held] = {}
    try:
        for folder in catalog.step_folders(storage):
            whole = storage.size(f"{folder.name}/{MANIFEST}") is not None
            if not (whole and tier.shared):
                jobs = jobs_in(storage, folder)
                divisions = {job.rank: job.division for job, _ in jobs}
                found[folder] = _Held(jobs[0][0].world_size if jobs else 0, divisions)
    except (OSError, TrainkitError) as error:
        log.warning("the local tier %s cannot be read: %s", tier.folder, error)
        return None
    return found


def _missing(held: list[_Held]) -> str:
    """What keeps a step from being whole over all nodes; empty if nothing does."""
    world_size = max(one.world_size for one in held)
    there = {rank for one in held for rank in one.divisions}
    missing = sorted(set(range(world_size)) - there)
    if missing or not world_size:
        return f"files of rank(s) {', '.join(map(str, missing)) or 'all'} are not there any more"
    divisions = {division for one in held for division in one.divisions.values()}
    return "" if len(divisions) == 1 else "its ranks held different tensors"


def _mine(held: list[_Held], rank: int) -> list[int]:
    """The ranks that wrote whose files this rank uploads: those that no lower one sees."""
    lower = {writer for one in held[:rank] for writer in one.divisions}
    return sorted(set(held[rank].divisions) - lower)


def _verified(tier: LocalTier, folder: StepFolder, mine: list[int]) -> dict[str, object] | None:
    """Read all files of these ranks; what rank 0 was to do, if that is one of them."""
    storage, chief = tier.storage(), None
    jobs = {job.rank: (job, part) for job, part in jobs_in(storage, folder)}
    for rank in mine:
        if rank not in jobs:
            raise CheckpointDamagedError(f"{storage.url}/{folder.name} lacks rank {rank}'s part")
        job, part = jobs[rank]
        for path, record in part.files.items():
            for _ in verified_chunks(storage, f"{folder.name}/{path}", record):
                pass
        if rank == 0:
            chief = job.to_json()
    return chief


def _upload(
    tier: LocalTier,
    folder: StepFolder,
    mine: list[int],
    root: Storage,
    communicator: Communicator,
    job: Job,
) -> bool:
    """Write the parts of these ranks on each rank, then commit; whether it is committed."""
    near = tier.storage()

    def write() -> None:
        for own, part in jobs_in(near, folder):
            if own.rank in mine:
                theirs = replace(job, rank=own.rank, entries=part.entries, attempts=1)

                def put(storage: Storage, part: Part = part) -> dict[str, FileRecord]:
                    copy_files(
                        near, folder.name, storage, job.folder.name, part.files, job, lambda: None
                    )
                    return dict(part.files)

                write_part(root, theirs, put)

    def finish() -> None:
        if communicator.rank == 0:
            commit(root, job, Deadline(job.timeout), lambda: None)

    written = on_all_ranks(communicator, write, timeout=job.timeout)
    if not written.failures:
        written = on_all_ranks(communicator, finish, timeout=job.timeout)
    if not written.failures:
        return True
    if communicator.rank == 0:
        discard_step(root, job.folder)
    kinds = {error.__name__ for error in _SETTLED_BY_ANOTHER_SAVE}
    if any(failure.kind not in kinds for failure in written.failures):
        written.check()
    log.warning("step %d on the nodes is passed over: %s", folder.step, written.failures[0].text)
    return False
