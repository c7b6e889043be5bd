"""The local tier: a folder on each node that holds a checkpoint before the root does."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from trainkit.checkpoint.format.catalog import step_folders
from trainkit.checkpoint.save.commit import commit, create_once
from trainkit.checkpoint.save.job import Job
from trainkit.checkpoint.save.work import Put, carry_out, write_part
from trainkit.errors import TrainkitError
from trainkit.storage import LocalStorage, Storage
from trainkit.waiting import Deadline

__all__ = ["JOB", "LocalTier", "save_everywhere"]

log = logging.getLogger(__name__)

JOB = "JOB.json"
"""In a rank's own tier, beside its part: what it was to save, so that another process can."""

_PATIENCE = 10.0
"""Seconds that rank 0 waits at least for the other ranks' files to be in the tier, before it goes
on to the root without them."""


@dataclass(frozen=True, slots=True)
class LocalTier:
    """Where this run's checkpoints lie on this node."""

    folder: str
    """Of all ranks, or of this rank alone."""
    shared: bool
    """Whether all ranks see the same folder: then it is a root of checkpoints like any other.
    Else each rank keeps what it wrote, and what it was to do."""

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
            _keep(tier, job, put, check)
            kept()
        except (OSError, TrainkitError) as error:
            if not job.upload:
                raise
            log.warning(
                "step %d is not in the local tier %s: %s", job.folder.step, tier.folder, error
            )
    if job.upload:
        carry_out(storage, job, put, check)


def _keep(tier: LocalTier, job: Job, put: Put, check: Callable[[], None]) -> None:
    """Write to the tier, and commit there if all ranks do; tried once."""
    storage, once = tier.storage(), replace(job, attempts=1)
    if job.leave is not None and (job.rank == 0 or not tier.shared):
        for folder in step_folders(storage):
            if folder.name not in (job.leave, job.folder.name):
                storage.delete(folder.name)
    began = Deadline(job.timeout)
    write_part(storage, once, put)
    if not tier.shared:
        create_once(storage, f"{job.folder.name}/{JOB}", json.dumps(job.to_json()).encode())
    elif job.rank == 0:
        # Another rank whose tier has failed is on its way to the root, and does not come.
        limit = job.timeout if not job.upload else max(_PATIENCE, 3 * began.elapsed)
        commit(storage, once, Deadline(limit), check)
