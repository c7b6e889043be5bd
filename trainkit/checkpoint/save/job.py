"""What one rank has to do for one save, in words that another process understands."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trainkit.checkpoint.format.layout import StepFolder
from trainkit.checkpoint.format.manifest import Entry

__all__ = ["Job"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One rank's work on one save, apart from the bytes of its files."""

    folder: StepFolder
    rank: int
    world_size: int
    division: str
    entries: Mapping[str, Entry]
    metrics: Mapping[str, float]
    written_by: str
    timeout: float
    """Seconds after which rank 0 waits no longer for the parts of all ranks."""
    attempts: int
    """How often each step of the work is tried while the storage answers with I/O errors."""
    pause: float
    """Seconds before the second attempt; doubled before each further one."""
    upload: bool = True
    """Whether it goes to the root; else it stays in the local tier alone."""
    like: str | None = None
    """The step folder that was committed to the root last: what did not change is there."""
    leave: str | None = None
    """The step folder that stays in the local tier beside this one; None: all of them do."""

    def to_json(self) -> dict[str, Any]:
        """As JSON; floats of the metrics that JSON lacks are Python's own extension of it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Job":
        """From JSON."""
        entries = {
            name: Entry(entry["kind"], tuple(entry["documents"]))
            for name, entry in value["entries"].items()
        }
        return cls(**{**value, "folder": StepFolder(**value["folder"]), "entries": entries})
