"""What is asked of the doctor, and what it finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Protocol

__all__ = ["Check", "Finding", "Question", "Status"]


class Status(StrEnum):
    """What a finding means for the job."""

    OK = "ok"
    WARNING = "warning"
    BROKEN = "would break"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be looked at, and what the job will need. All sizes are in bytes."""

    checkpoint_dir: str | None = None
    """Folder or URL of checkpoints; None: TRAINKIT_CHECKPOINT_DIR."""
    across: bool = False
    """Whether to meet the other pods of the job."""
    state_size: int | None = None
    """Size of a checkpoint: model and optimizer."""
    loader_workers: int | None = None
    """Processes of each rank that load data."""
    batch_size: int | None = None
    """Size of one batch as a loader's worker hands it over."""
    timeout: float | None = None
    """Seconds for each check; None: each has its own."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, what was found, and what to do about it."""

    check: str
    """Name for scripts; it does not change."""
    status: Status
    found: str
    """One sentence, or where it is not checked the reason."""
    advice: str = ""
    """What to do; empty where nothing is to be done."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """Numbers and names behind ``found``, for scripts; sizes are in bytes, times in seconds."""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "status": self.status.name.lower()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Finding:
        """From what ``to_json`` gave."""
        return cls(**{**value, "status": Status[value["status"].upper()]})


class Check(Protocol):
    """One subject that is looked at; ``checks.CHECKS`` lists them all.

    A check runs in a process of its own. It may block, crash or raise: its deadline, or its end,
    becomes a finding. What it prints is not seen.
    """

    def __call__(self, question: Question) -> Iterable[Finding]:
        """Look, and say what is found; what was yielded before a crash counts."""
        ...
