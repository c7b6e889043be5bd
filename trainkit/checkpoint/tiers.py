"""The local tier on all ranks together: opening it, and saving what only the nodes still have."""

import contextlib
import errno
import json
import logging
import os
import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from trainkit.checkpoint.agreement import Outcome, on_all_ranks
from trainkit.checkpoint.copier import copy_files
from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.checksums import FileRecord, digest
from trainkit.checkpoint.format.layout import MANIFEST, TIER, StepFolder, job_path, part_path
from trainkit.checkpoint.format.manifest import Part
from trainkit.checkpoint.load.files import verified_chunks
from trainkit.checkpoint.options import CheckpointOptions
from trainkit.checkpoint.save.commit import commit, create_once
from trainkit.checkpoint.save.job import Job
from trainkit.checkpoint.save.retention import discard_step
from trainkit.checkpoint.save.tiers import LocalTier, remove_folder
from trainkit.checkpoint.save.work import write_part
from trainkit.coordination import Communicator
from trainkit.errors import (
    CheckpointDamagedError,
    InputMissingError,
    TrainkitError,
    UsageError,
)
from trainkit.storage import LocalStorage, Storage, open_storage
from trainkit.waiting import Deadline

__all__ = ["clear_tier", "open_tier", "upload_leftover"]

log = logging.getLogger(__name__)

_SETTLED_BY_ANOTHER_SAVE = (UsageError, CheckpointDamagedError)
"""What a leftover may fail with that the next start would find again."""


def open_tier(
    path: str | os.PathLike[str] | None,
    root: Storage,
    communicator: Communicator,
    generation: int,
    *,
    timeout: float,
) -> LocalTier | None:
    """Open the tier below ``path`` on all ranks, and find out whether they see the same folder.

    One that fails on any rank is none on all of them, with a warning.

    Args:
        path: of the tier; None for none.
        root: where checkpoints go after it.
        communicator: of the ranks.
        generation: that this run claimed from the root.
        timeout: seconds for the slowest rank.

    Raises:
        UsageError: it is no local path, or it is the root.
        NoPermissionError: nothing can be written there.
    """
    if path is None:
        return None
    rank = communicator.rank
    token = f".seen-{uuid.uuid4().hex}"

    def identify() -> str:
        above = open_storage(path)
        if not isinstance(above, LocalStorage):
            raise UsageError(f"local_tier={path!r}: expected a folder on a disk of this node")
        if above.url == root.url:
            raise UsageError(f"local_tier={path!r} is the folder of checkpoints itself")
        if os.path.exists(above.url) and not os.path.isdir(above.url):
            raise UsageError(f"local_tier={path!r} is a file; expected a folder")
        return _identity(root) if rank == 0 else ""

    def prepare(run: str) -> str:
        above = LocalStorage(path)
        try:
            mark(above, run)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            # What a save that was cut off has left is the least of what can go.
            _remove_cut_off(LocalTier(f"{above.url}/{run}", False, generation))
            mark(above, run)
        return f"{above.url}/{run}"

    def mark(above: LocalStorage, run: str) -> None:
        above.make_folder(run)
        # The name says nothing to people, so a file does.
        if above.size(f"{run}/root") is None:
            create_once(above, f"{run}/root", root.url.encode())
        if rank == 0:
            above.create(f"{run}/{token}", b"")

    identity = on_all_ranks(communicator, identify, timeout=timeout).check()[0]
    # Jobs that share a node must not meet, nor this one and what was at the same URL before.
    run = f"run-{digest(f'{root.url} {identity}'.encode())[:16]}"
    prepared = on_all_ranks(communicator, lambda: prepare(run), timeout=timeout)
    if not _works(prepared):
        return None
    folder, storage = prepared.check()[rank], LocalStorage(path)
    # Rank 0's token, whose name the others cannot know.
    first = communicator.broadcast_object(f"{run}/{token}", timeout=timeout)
    seen = on_all_ranks(communicator, lambda: storage.size(first) is not None, timeout=timeout)
    if rank == 0:
        with contextlib.suppress(OSError, TrainkitError):
            storage.delete(first)
    return LocalTier(folder, all(seen.check()), generation) if _works(seen) else None


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


def clear_tier(tier: LocalTier) -> None:
    """Remove what this run and those before it have in the tier; a failure is only said."""
    storage = tier.storage()
    try:
        for folder in catalog.step_folders(storage):
            if folder.generation <= tier.generation:
                remove_folder(storage, folder)
    except (OSError, TrainkitError) as error:
        log.warning("the local tier %s could not be emptied: %s", tier.folder, error)


@dataclass(frozen=True, slots=True)
class _Held:
    """What one rank sees of a step on its node."""

    world_size: int
    divisions: Mapping[int, str]
    """Rank that wrote → checksum of how tensors were divided."""


_NOTHING = _Held(0, {})


def _identity(root: Storage) -> str:
    """What tells this root from another one that lies, or will lie, at the same URL."""
    try:
        root.create(TIER, secrets.token_hex(16).encode())
    except FileExistsError:
        log.debug("%s had a tier before", root.url)
    return root.read(TIER).decode("ascii", "replace")


def _remove_cut_off(tier: LocalTier) -> None:
    """Remove steps of which nobody's part is whole."""
    storage = tier.storage()
    for folder in catalog.step_folders(storage):
        whole = storage.size(f"{folder.name}/{MANIFEST}") is not None
        if not whole and not _jobs(storage, folder):
            remove_folder(storage, folder)


def _works(outcome: Outcome[Any]) -> bool:
    """Whether no rank's tier failed by an I/O error, such as that of a full disk."""
    if not outcome.io_only:
        outcome.check()
        return True
    failure = outcome.failures[0]
    log.warning("there is no local tier, since rank %d failed: %s", failure.rank, failure.text)
    return False


def _held(tier: LocalTier) -> dict[StepFolder, _Held] | None:
    """Steps of which this node has whole parts of ranks, and whose; None: it cannot be read."""
    storage = tier.storage()
    found: dict[StepFolder, _Held] = {}
    try:
        for folder in catalog.step_folders(storage):
            whole = storage.size(f"{folder.name}/{MANIFEST}") is not None
            if not (whole and tier.shared):
                jobs = _jobs(storage, folder)
                divisions = {job.rank: job.division for job, _ in jobs}
                found[folder] = _Held(jobs[0][0].world_size if jobs else 0, divisions)
    except (OSError, TrainkitError) as error:
        log.warning("the local tier %s cannot be read: %s", tier.folder, error)
        return None
    return found


def _jobs(storage: LocalStorage, folder: StepFolder) -> list[tuple[Job, Part]]:
    """What ranks were to save and did, of those whose part is whole."""
    found = []
    for name in storage.names(f"{folder.name}/{part_path(0).rpartition('/')[0]}"):
        rank = name.removeprefix("rank").removesuffix(".json")
        if not rank.isdecimal() or name != part_path(int(rank)).rpartition("/")[2]:
            continue
        try:
            part = Part.from_bytes(storage.read(f"{folder.name}/{part_path(int(rank))}"))
            found.append((_job(storage, folder, part), part))
        except (InputMissingError, CheckpointDamagedError) as reason:
            log.debug("%s/%s does not count: %s", folder.name, name, reason)
    return found


def _job(storage: LocalStorage, folder: StepFolder, part: Part) -> Job:
    """What the rank of ``part`` was to do: as it noted, or as a manifest tells."""
    try:
        data = storage.read(f"{folder.name}/{job_path(part.rank)}")
    except InputMissingError:
        manifest = catalog.read_own_manifest(storage, folder)
        return Job(
            folder=folder,
            rank=part.rank,
            world_size=manifest.world_size,
            division=part.division,
            entries=part.entries,
            metrics=manifest.metrics,
            written_by=manifest.written_by,
            timeout=0.0,
            attempts=1,
            pause=0.0,
        )
    try:
        return Job.from_json(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointDamagedError(f"{job_path(part.rank)} makes no sense: {error}") from None


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
    jobs = {job.rank: (job, part) for job, part in _jobs(storage, folder)}
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
        for own, part in _jobs(near, folder):
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
