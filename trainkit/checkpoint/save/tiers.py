"""The local tier: a folder on each node that holds a checkpoint before the root does."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.layout import MANIFEST, StepFolder, job_path, part_path
from trainkit.checkpoint.format.manifest import Part
from trainkit.checkpoint.save.commit import commit, create_once
from trainkit.checkpoint.save.generation import refuse_overtaken
from trainkit.checkpoint.save.job import Job
from trainkit.checkpoint.save.work import Put, carry_out, write_part
from trainkit.errors import (
    CheckpointDamagedError,
    EnvironmentFaultError,
    InputMissingError,
    TrainkitError,
)
from trainkit.storage import LocalStorage, Storage
from trainkit.waiting import Deadline

__all__ = ["LocalTier", "jobs_in", "remove_folder", "save_everywhere"]

log = logging.getLogger(__name__)

_PATIENCE = 10.0
"""Seconds that rank 0 waits at least for the other ranks' files to be in the tier, before it goes
on to the root without them."""


@dataclass(frozen=True, slots=True)
class LocalTier:
    """Where this run's checkpoints lie on this node."""

    folder: str
    shared: bool
    """Whether all ranks see the same folder: then it is a root of checkpoints like any other.
    Else there is, of each step, what this node's ranks wrote, and what they were to do."""
    generation: int
    """Of this run, as claimed from the root."""

    def storage(self) -> LocalStorage:
        """The folder."""
        return LocalStorage(self.folder)


def save_everywhere(
    storage: Storage,
    tier: LocalTier | None,
    job: Job,
    put: Put,
    *,
    check: Callable[[], None],
    kept: Callable[[], None],
) -> None:
    """Do one rank's work on a save: in the local tier, if there is one, then in the root.

    Without the root the tier has to do; before it, a tier that fails is only a pity.

    Args:
        storage: of the root.
        tier: None where there is none.
        job: what to do.
        put: writes this rank's files.
        check: called while waiting for others; what it raises ends the wait.
        kept: called once the local tier has what this rank saves: all ranks' files, if it is
            shared.

    Raises:
        OSError: the storage failed at each attempt.
        TrainkitError: what ``commit`` raises.
    """
    if tier is not None:
        try:
            _keep(storage, tier, job, put, check)
            kept()
        except (OSError, TrainkitError) as error:
            if not job.upload:
                raise
            log.warning(
                "step %d is not in the local tier %s: %s", job.folder.step, tier.folder, error
            )
    if job.upload:
        carry_out(storage, job, put, check)


def remove_folder(storage: Storage, folder: StepFolder) -> None:
    """Remove a step folder of a tier; one that is removed by half is no checkpoint any more."""
    storage.delete(f"{folder.name}/{MANIFEST}")
    storage.delete(folder.name)


def jobs_in(storage: LocalStorage, folder: StepFolder) -> list[tuple[Job, Part]]:
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


def _keep(root: Storage, tier: LocalTier, job: Job, put: Put, check: Callable[[], None]) -> None:
    """Write to the tier, and commit there if all ranks do; tried once."""
    storage, once = tier.storage(), replace(job, attempts=1)
    _make_room(storage, tier, job)
    began = Deadline(job.timeout)
    write_part(storage, once, put)
    if not tier.shared:
        path = f"{job.folder.name}/{job_path(job.rank)}"
        create_once(storage, path, json.dumps(job.to_json()).encode())
    if job.rank != 0:
        return
    if not job.upload:  # otherwise the root tells
        refuse_overtaken(root, job.folder.generation)
    if tier.shared and storage.size(f"{job.folder.name}/{MANIFEST}") is None:
        # Another rank whose tier has failed is on its way to the root, and does not come.
        limit = job.timeout if not job.upload else max(_PATIENCE, 3 * began.elapsed)
        commit(storage, once, Deadline(limit), check)


def _make_room(storage: Storage, tier: LocalTier, job: Job) -> None:
    """Remove what will not be needed once this step is there.

    Raises:
        EnvironmentFaultError: another run has taken over.
    """
    folders = catalog.step_folders(storage)
    newer = [folder for folder in folders if folder.generation > tier.generation]
    if newer:
        raise EnvironmentFaultError(
            f"another run saves to {storage.url}: it wrote {newer[0].name}, and this run has the "
            f"older generation {tier.generation}"
        )
    if tier.shared and job.rank != 0:
        return
    stay = {job.folder.name, job.leave}
    if job.leave is None and tier.shared:
        stay.update(folder.name for folder in catalog.committed(storage)[:1])
    elif job.leave is None:
        # Which of them the other nodes have, too, is not known here: one of the newest two.
        mine = (f for f in folders if storage.size(f"{f.name}/{job_path(job.rank)}") is not None)
        stay.update(folder.name for folder, _ in zip(mine, range(2), strict=False))
    for folder in folders:
        if folder.name not in stay:
            remove_folder(storage, folder)


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
