"""Removing old checkpoints at a person's word, by the rule that a run goes by after a save."""

from trainkit.checkpoint.format.layout import StepFolder
from trainkit.checkpoint.retention import as_policy
from trainkit.checkpoint.save.retention import plan_removals, remove_step
from trainkit.storage import Storage

__all__ = ["find_surplus", "remove_step"]


def find_surplus(storage: Storage, keep: int) -> list[StepFolder]:
    """Checkpoints that would go if the newest ``keep`` valid ones stayed; nothing is changed.

    Pinned ones stay, and so does what was not committed, which may be a save under way.

    Raises:
        UsageError: ``keep`` is below 1.
    """
    removals = plan_removals(storage, as_policy(keep))
    return [removal.folder for removal in removals if removal.reason != "cut off"]
