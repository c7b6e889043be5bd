"""What stays in a checkpoint root after a commit."""

from itertools import islice

from trainkit.checkpoint.format.catalog import committed, uncommitted, valid
from trainkit.checkpoint.format.layout import MANIFEST, QUARANTINE, StepFolder
from trainkit.storage import Storage

__all__ = ["keep_newest", "remove_step"]


def keep_newest(storage: Storage, keep: int, *, generation: int) -> list[StepFolder]:
    """Remove what is older than the newest ``keep`` valid checkpoints.

    Only valid ones count, so a damaged one never takes the place of a good one. What is
    newer than the oldest that is kept stays, damaged or not, for a person to look at. Of
    saves that were never committed, those of earlier generations go: their process has
    ended, or has been overtaken and cannot commit any more.

    Args:
        storage: of the root.
        keep: number of valid checkpoints that stay, at least 1.
        generation: of this process.

    Returns:
        What was removed.
    """
    kept = dict(islice(((folder.step, folder) for folder, _ in valid(storage)), keep))
    if not kept:  # nothing valid to fall back on: remove nothing
        return []
    oldest = min(folder.age for folder in kept.values())
    removed = [
        folder
        for folder in committed(storage, set_aside=True)
        if (len(kept) == keep and folder.age < oldest)
        or (folder.step in kept and folder.age < kept[folder.step].age)
    ]
    removed += [folder for folder in uncommitted(storage) if folder.generation < generation]
    for folder in removed:
        remove_step(storage, folder)
    _forget_marks(storage)
    return removed


def remove_step(storage: Storage, folder: StepFolder) -> None:
    """Remove a step folder; one that is removed by half is no checkpoint any more."""
    storage.delete(f"{folder.name}/{MANIFEST}")
    storage.delete(folder.name)
    storage.delete(f"{QUARANTINE}/{folder.name}")


def _forget_marks(storage: Storage) -> None:
    """Remove marks of damaged folders that a person has taken away."""
    marks = storage.names(QUARANTINE)
    if marks:
        there = set(storage.names())
        for name in marks:
            if name not in there:
                storage.delete(f"{QUARANTINE}/{name}")
