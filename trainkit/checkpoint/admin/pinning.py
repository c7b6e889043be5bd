"""Pins by step: what is pinned stays, whatever a policy or ``prune`` says."""

from trainkit.checkpoint.admin.locating import find_step, no_checkpoints, of_step
from trainkit.checkpoint.format import pins
from trainkit.checkpoint.format.layout import StepFolder
from trainkit.storage import Storage

__all__ = ["pin_step", "unpin_step"]


def pin_step(storage: Storage, step: int | None, named: StepFolder | None = None) -> StepFolder:
    """Pin the checkpoint of ``step`` that was saved last; nothing new where it is pinned.

    Raises:
        InputMissingError: there is none.
    """
    folder = find_step(storage, step, named)
    pins.pin(storage, folder)
    return folder


def unpin_step(storage: Storage, step: int) -> list[StepFolder]:
    """Take all pins from ``step``; what a policy does next is not done here.

    Returns:
        The folders that were pinned, of which some may have been taken away by a person.

    Raises:
        InputMissingError: there is no such checkpoint, and no pin of one.
    """
    try:
        names = map(StepFolder.parse, sorted(pins.pinned(storage)))
    except NotADirectoryError:
        raise no_checkpoints(storage) from None
    found = [folder for folder in names if folder is not None and folder.step == step]
    if not found:
        of_step(storage, step)
    for folder in found:
        pins.unpin(storage, folder)
    return found
