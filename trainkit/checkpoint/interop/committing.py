"""The commit of a checkpoint that no CheckpointManager has written."""

import datetime
import logging
from collections.abc import Mapping

import trainkit
from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.checksums import FileRecord
from trainkit.checkpoint.format.layout import MANIFEST, StepFolder
from trainkit.checkpoint.format.manifest import Entry, Manifest
from trainkit.checkpoint.options import CheckpointOptions
from trainkit.checkpoint.save.generation import refuse_overtaken
from trainkit.checkpoint.save.lease import Lease, LeaseTimes, take_lease
from trainkit.checkpoint.save.retention import remove_step
from trainkit.errors import TrainkitError
from trainkit.storage import Storage

__all__ = ["commit", "discard", "hold"]

log = logging.getLogger(__name__)


def hold(storage: Storage, options: CheckpointOptions) -> Lease:
    """Take a root for this process.

    Raises:
        EnvironmentFaultError: another run has it and is alive, or it is no folder of checkpoints.
        NoPermissionError: nothing can be written there.
    """
    catalog.refuse_foreign(storage)
    times = LeaseTimes(silence=options.lease, renewal=options.renewal, patience=options.patience)
    return take_lease(storage, times)


def commit(
    storage: Storage,
    folder: StepFolder,
    files: Mapping[str, FileRecord],
    entries: Mapping[str, Entry],
    *,
    world_size: int,
) -> None:
    """Create the manifest, once all files are there.

    Args:
        storage: of the root.
        folder: of the checkpoint.
        files: all that the checkpoint consists of.
        entries: what they mean.
        world_size: number of ranks that saved; 0 where none did.

    Raises:
        EnvironmentFaultError: another run has taken over the root.
    """
    refuse_overtaken(storage, folder.generation)
    manifest = Manifest(
        step=folder.step,
        generation=folder.generation,
        attempt=folder.attempt,
        world_size=world_size,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        written_by=f"trainkit {trainkit.__version__}",
        files=files,
        entries=entries,
    )
    storage.create(f"{folder.name}/{MANIFEST}", manifest.to_bytes())
    log.info("saved step %d to %s/%s", folder.step, storage.url, folder.name)


def discard(storage: Storage, folder: StepFolder) -> None:
    """Remove what a save that failed has left; it is no checkpoint in any case."""
    try:
        remove_step(storage, folder)
    except (OSError, TrainkitError) as error:
        log.warning("what is left of %s could not be removed: %s", folder.name, error)
