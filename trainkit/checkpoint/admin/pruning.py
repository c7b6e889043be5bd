"""Removing old checkpoints at a person's word, by the rule that a run goes by after a save."""

from typing import Any, cast

from trainkit.checkpoint.format.layout import StepFolder
from trainkit.checkpoint.format.pins import pinned
from trainkit.checkpoint.save.retention import keep_newest, remove_step
from trainkit.errors import UsageError
from trainkit.storage import Storage

__all__ = ["find_surplus", "remove_step"]


def find_surplus(storage: Storage, keep: int) -> list[StepFolder]:
    """Checkpoints that would go if the newest ``keep`` valid ones stayed; nothing is changed.

    Pinned ones stay, and so does what was not committed, which may be a save under way.

    Raises:
        UsageError: ``keep`` is below 1.
    """
    if keep < 1:
        raise UsageError(f"keep={keep}: at least 1 checkpoint has to stay")
    watched = cast(Storage, _Undeleting(storage))
    stay = pinned(storage)
    return [f for f in keep_newest(watched, keep, generation=0) if f.name not in stay]


class _Undeleting:
    """A storage that is told to delete, and does not."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def delete(self, path: str) -> None:
        """See ``Storage.delete``; nothing happens."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)
