"""Checkpoints that no policy may remove: an empty file for each, beside the step folders."""

from trainkit.checkpoint.format.layout import PINS, StepFolder
from trainkit.storage import Storage

__all__ = ["pin", "pinned", "unpin"]


def pinned(storage: Storage) -> frozenset[str]:
    """Names of the step folders that are pinned; a folder may be gone all the same."""
    return frozenset(storage.names(PINS))


def pin(storage: Storage, folder: StepFolder) -> None:
    """Keep ``folder`` until it is unpinned; nothing new where it is pinned already."""
    storage.make_folder(PINS)
    try:
        storage.create(f"{PINS}/{folder.name}", b"")
    except FileExistsError:
        return


def unpin(storage: Storage, folder: StepFolder) -> None:
    """Leave ``folder`` to the policies again; nothing where it is not pinned."""
    storage.delete(f"{PINS}/{folder.name}")
