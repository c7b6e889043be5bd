"""The local tier on all ranks together: opening it, and saving what only the tiers still hold."""

import json
import logging
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from trainkit.checkpoint.agreement import on_all_ranks
from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.checksums import FileRecord, digest
from trainkit.checkpoint.format.layout import StepFolder, part_path
from trainkit.checkpoint.format.manifest import Part
from trainkit.checkpoint.load.reader import read_verified
from trainkit.checkpoint.save.commit import create_once
from trainkit.checkpoint.save.job import Job
from trainkit.checkpoint.save.tiers import JOB, LocalTier
from trainkit.checkpoint.save.work import carry_out
from trainkit.coordination import Communicator
from trainkit.errors import CheckpointDamagedError, InputMissingError, UsageError
from trainkit.storage import LocalStorage, Storage, open_storage

__all__ = ["clear_tier", "open_tier", "upload_leftover"]

log = logging.getLogger(__name__)


def open_tier(
    path: str | os.PathLike[str] | None,
    root: Storage,
    communicator: Communicator,
    *,
    timeout: float,
) -> LocalTier | None:
    """Open the tier below ``path`` on all ranks, and find out whether they see the same folder.

    Raises:
        UsageError: it is no local path, or it is the root.
        OSError: nothing can be written there, on this rank or another one.
    """
    if path is None:
        return None
    token = f".seen-{uuid.uuid4().hex}"
    rank, world_size = communicator.rank, communicator.world_size

    def prepare() -> tuple[str, str]:
        above = open_storage(path)
        if not isinstance(above, LocalStorage):
            raise UsageError(f"local_tier={path!r}: expected a folder on a disk of this node")
        if above.url == root.url:
            raise UsageError(f"local_tier={path!r} is the folder of checkpoints itself")
        # Jobs that share a node must not meet; the name says nothing, so a file does.
        run = f"run-{digest(root.url.encode())[:16]}"
        above.make_folder(run)
        create_once(above, f"{run}/root", root.url.encode())
        if rank == 0:
            above.create(f"{run}/{token}", b"")
        return f"{above.url}/{run}", token

    prepared = on_all_ranks(communicator, prepare, timeout=timeout).check()
    folder, token = prepared[rank][0], prepared[0][1]
    storage = LocalStorage(folder)
    try:
        seen = communicator.all_gather_object(storage.size(token) is not None, timeout=timeout)
    finally:
        if rank == 0:
            storage.delete(token)
    if all(seen):
        return LocalTier(folder, shared=True)
    own = LocalTier(f"{folder}/rank{rank:05d}-of-{world_size:05d}", shared=False)
    own.storage().make_folder()
    return own


def upload_leftover(
    tier: LocalTier,
    root: Storage,
    communicator: Communicator,
    *,
    name: Callable[[int], StepFolder],
    timeout: float,
) -> None:
    """Save what the nodes have of a save that did not reach the root; called by every rank.

    Only where each rank has a tier of its own: one that all see is a root, which is restored from
    as it is. It is saved as the save that was cut off would have done, but under a name of
    this run's: a process of the run before may still be writing the old one.

    Args:
        tier: of this rank.
        root: the storage of all ranks.
        communicator: of the ranks.
        name: gives the folder of the next attempt to save a step.
        timeout: seconds for the slowest rank.

    Raises:
        OSError: a tier cannot be read, or the root cannot be written, on some rank.
    """
    if tier.shared:
        return
    found = _leftover(tier, root, communicator, timeout=timeout)
    if found is None:
        return
    step = found.folder.step
    if communicator.rank == 0:
        log.warning("step %d is only on the nodes; it is saved to %s now", step, root.url)
    target = name(step)
    job = replace(found.job, folder=target, upload=True, leave=None, timeout=timeout)
    near = tier.storage()

    def put(storage: Storage) -> dict[str, FileRecord]:
        storage.write_all(
            {
                f"{target.name}/{path}": read_verified(near, f"{found.folder.name}/{path}", record)
                for path, record in found.part.files.items()
            }
        )
        return dict(found.part.files)

    work = partial(carry_out, root, job, put, lambda: None)
    on_all_ranks(communicator, work, timeout=timeout).check()


def clear_tier(tier: LocalTier) -> None:
    """Remove what this run has in the tier: all of it is in the root."""
    storage = tier.storage()
    for folder in catalog.step_folders(storage):
        storage.delete(folder.name)


@dataclass(frozen=True, slots=True)
class _Leftover:
    folder: StepFolder
    job: Job
    """This rank's, as it was begun."""
    part: Part


def _leftover(
    tier: LocalTier, root: Storage, communicator: Communicator, *, timeout: float
) -> _Leftover | None:
    """The newest step that each rank has its files of, and the root has not.

    Files are verified here, so that damage on one rank lets all take an older step.
    """

    def look() -> tuple[tuple[int, int], list[StepFolder]]:
        committed = catalog.committed(root) if communicator.rank == 0 else []
        return committed[0].age if committed else (0, -1), _complete(tier, communicator)

    looks = on_all_ranks(communicator, look, timeout=timeout).check()
    newest, everywhere = looks[0][0], set.intersection(*(set(own) for _, own in looks))
    for folder in sorted(everywhere, key=lambda folder: folder.age, reverse=True):
        if folder.age <= newest:
            return None
        verify = partial(_verify, tier, folder, communicator.rank)
        verified = on_all_ranks(communicator, verify, timeout=timeout)
        if not verified.failures:
            job, part = _job_and_part(tier.storage(), folder, communicator.rank)
            return _Leftover(folder, job, part)
        log.warning(
            "step %d on the nodes is passed over: %s", folder.step, verified.failures[0].text
        )
    return None


def _complete(tier: LocalTier, communicator: Communicator) -> list[StepFolder]:
    """Steps of which this rank has all that it was to save, in a world of this size."""
    storage, found = tier.storage(), []
    for folder in catalog.step_folders(storage):
        try:
            job, _ = _job_and_part(storage, folder, communicator.rank)
        except (InputMissingError, CheckpointDamagedError) as reason:
            log.debug("%s/%s does not count: %s", storage.url, folder.name, reason)
            continue
        if job.world_size == communicator.world_size:
            found.append(folder)
    return found


def _job_and_part(storage: LocalStorage, folder: StepFolder, rank: int) -> tuple[Job, Part]:
    part = Part.from_bytes(storage.read(f"{folder.name}/{part_path(rank)}"))
    data = storage.read(f"{folder.name}/{JOB}")
    try:
        return Job.from_json(json.loads(data)), part
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointDamagedError(f"{JOB} makes no sense: {error}") from None


def _verify(tier: LocalTier, folder: StepFolder, rank: int) -> None:
    storage = tier.storage()
    _, part = _job_and_part(storage, folder, rank)
    for path, record in part.files.items():
        read_verified(storage, f"{folder.name}/{path}", record)
