"""Names of files and folders below a checkpoint root.

step-0000000100.g03-0007/          step 100, generation 3, its 8th attempt to save
    MANIFEST.json                  the commit: written last, lists every other file
    model/model.safetensors        a folder for each module of the state
    optim/optimizer.json           optimizers, keyed by the names of parameters
    optim/optimizer.safetensors
    state/progress.json            everything else
    ranks/rank00000.json           what this rank wrote
    ranks/rank00000.state.json     random generators and PerRank entries of this rank
.generations/0000000003            claimed by one process that opened the root
.quarantine/step-…                 why this checkpoint is passed over
.pins/step-…                       this checkpoint stays, whatever the policy
"""

import re
from dataclasses import dataclass

from trainkit.errors import UsageError

__all__ = [
    "GENERATIONS",
    "MANIFEST",
    "PINS",
    "QUARANTINE",
    "RESERVED",
    "StepFolder",
    "check_entry_name",
    "is_safe_path",
    "part_path",
    "rank_state_path",
]

MANIFEST = "MANIFEST.json"
GENERATIONS = ".generations"
QUARANTINE = ".quarantine"
PINS = ".pins"
RESERVED = ("optim", "state", "ranks")
"""Folders that a module's entry cannot have for its own."""

_STEP = re.compile(r"step-(\d{10,18})\.g(\d{2,9})-([0-9a-f]{4,8})")
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True)
class StepFolder:
    """The folder of one attempt to save one step; its name is never used twice.

    ``generation`` is claimed from the root by one process, and ``attempt`` counts that
    process's saves from 0. So ``age`` orders attempts as they happened, whatever the clocks
    say, and also after a restore to an earlier step.
    """

    step: int
    generation: int
    attempt: int

    @property
    def name(self) -> str:
        """The folder's name below the root."""
        return f"step-{self.step:010d}.g{self.generation:02d}-{self.attempt:04x}"

    @property
    def age(self) -> tuple[int, int]:
        """Orders folders from the oldest save to the newest."""
        return (self.generation, self.attempt)

    @classmethod
    def parse(cls, name: str) -> "StepFolder | None":
        """The folder that ``name`` stands for, or None for any other name."""
        match = _STEP.fullmatch(name)
        if match is None:
            return None
        folder = cls(int(match[1]), int(match[2]), int(match[3], 16))
        return folder if folder.name == name else None


def part_path(rank: int) -> str:
    """Where rank ``rank`` lists the files that it wrote."""
    return f"ranks/rank{rank:05d}.json"


def rank_state_path(rank: int) -> str:
    """Where rank ``rank`` keeps what only it has; without suffix."""
    return f"ranks/rank{rank:05d}.state"


def is_safe_path(path: str) -> bool:
    """Whether ``path``, read from a file, stays inside its step folder."""
    parts = path.split("/")
    return 1 <= len(parts) <= 4 and all(_COMPONENT.fullmatch(part) for part in parts)


def check_entry_name(name: str) -> None:
    """Refuse names of state entries that are no good as names of files.

    Raises:
        UsageError: the message names the entry and says what a name may hold.
    """
    fits = isinstance(name, str) and len(name) <= 100 and _COMPONENT.fullmatch(name) is not None
    if not fits or name.casefold() == MANIFEST.casefold():
        raise UsageError(
            f"{name!r} cannot be the name of a checkpoint entry: letters, digits, '_', '-' and "
            f"'.' are expected, at most 100, not beginning with '-' or '.', and not {MANIFEST}"
        )
