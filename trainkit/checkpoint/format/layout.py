"""Names of files and folders below a checkpoint root.

step-0000000100.g03-0007/          step 100, generation 3, its 8th attempt to save
    MANIFEST.json                  the commit: written last, lists every other file
    model/model.safetensors        a folder for each module of the state
    model/model-00001-of-00002.safetensors   … in pieces, where several ranks wrote it, and
    model/model.safetensors.index.json       which piece holds which tensor
    optim/optimizer.json           optimizers, keyed by the names of parameters
    optim/optimizer.safetensors
    booster/model.ubj              a folder for each booster: XGBoost's own file, and nothing else
    tensorflow/ckpt.index          TensorFlow's own checkpoint of all that it tracks
    tensorflow/ckpt.data-00000-of-00001
    state/progress.json            everything else
    model/model.sharded.json       tensors of which each rank saved a part, with its own things
    ranks/rank00000.json           what this rank wrote
    ranks/rank00000.state.json     random generators and PerRank entries of this rank
.generations/0000000003            claimed by one process that opened the root
.quarantine/step-…                 why this checkpoint is passed over
.pins/step-…                       this checkpoint stays, whatever the policy
.tier                              tells the local tiers of this root from those of any other
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from trainkit.errors import UsageError

__all__ = [
    "GENERATIONS",
    "MANIFEST",
    "PINS",
    "QUARANTINE",
    "RANKS",
    "RESERVED",
    "TENSORFLOW",
    "TIER",
    "StepFolder",
    "check_entry_name",
    "has_parts",
    "index_path",
    "is_safe_path",
    "job_path",
    "part_path",
    "piece_path",
    "rank_state_path",
    "sharded_path",
    "tensor_files",
]

MANIFEST = "MANIFEST.json"
GENERATIONS = ".generations"
QUARANTINE = ".quarantine"
PINS = ".pins"
TIER = ".tier"
RANKS = "ranks"
TENSORFLOW = "tensorflow"
RESERVED = ("optim", "state", RANKS, TENSORFLOW)
"""Folders that an entry which is a model cannot have for its own."""

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


def piece_path(path: str, number: int, count: int) -> str:
    """Where piece ``number``, from 1, of the tensors of the document ``path`` lies."""
    return f"{path}-{number:05d}-of-{count:05d}.safetensors"


def index_path(path: str) -> str:
    """Where it says which piece of the document ``path`` holds which tensor."""
    return f"{path}.safetensors.index.json"


def tensor_files(path: str, files: Collection[str]) -> list[str]:
    """Those of ``files`` that hold the tensors of the document ``path``; none if it has none."""
    if f"{path}.safetensors" in files:
        return [f"{path}.safetensors"]
    if index_path(path) not in files:
        return []
    piece = re.compile(rf"{re.escape(path)}-\d{{5,}}-of-\d{{5,}}\.safetensors")
    return sorted(file for file in files if piece.fullmatch(file))


def sharded_path(path: str) -> str:
    """Where it says which tensors of the document ``path`` each rank has a part of."""
    return f"{path}.sharded"


def has_parts(documents: Collection[str]) -> bool:
    """Whether an entry with ``documents`` holds tensors of which each rank saved a part."""
    return any(sharded_path(path) in documents for path in documents)


def part_path(rank: int) -> str:
    """Where rank ``rank`` lists the files that it wrote."""
    return f"{RANKS}/rank{rank:05d}.json"


def job_path(rank: int) -> str:
    """In a local tier, where it says what rank ``rank`` was to save."""
    return f"{RANKS}/rank{rank:05d}.job.json"


def rank_state_path(rank: int) -> str:
    """Where rank ``rank`` keeps what only it has; without suffix."""
    return f"{RANKS}/rank{rank:05d}.state"


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
