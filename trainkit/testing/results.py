"""What came out of ranks, and the errors that show it."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["RankResult", "RanksFailed", "RanksTimeout", "trim_stacks"]

_OWN_FOLDER = str(Path(__file__).parent)

_SHOWN = 12_000
"""Characters of each stream that an error shows; the last ones."""


@dataclass(frozen=True, slots=True)
class RankResult:
    """How one rank ended."""

    rank: int
    """Its place in the run, from 0; with ``env=[…]`` the place in that list."""
    exit_code: int
    """0 to 255, or minus the number of the signal that ended it (-9: SIGKILL)."""
    value: Any = field(repr=False)
    """What the function returned; None for scripts and for ranks that did not get there."""
    stdout: str = field(repr=False)
    stderr: str = field(repr=False)
    """Also holds the traceback of an exception."""
    duration: float
    """Seconds from its fork to its end."""
    overdue: bool = False
    """Whether it still ran when the time was over."""
    cut_off: bool = False
    """Whether it was killed because another rank had failed."""
    stacks: str = field(default="", repr=False)
    """Its Python stacks at the deadline, if it was overdue."""

    @property
    def failed(self) -> bool:
        """Whether it ended in any way but with exit code 0."""
        return self.exit_code != 0

    def __str__(self) -> str:
        if self.exit_code < 0:
            try:
                name = signal.Signals(-self.exit_code).name
            except ValueError:
                name = "a real-time signal"
            end = f"exit code {self.exit_code} ({name})"
        else:
            end = f"exit code {self.exit_code}"
        if self.overdue:
            return f"rank {self.rank}: still running after {self.duration:.1f} s, killed"
        if self.cut_off:
            return f"rank {self.rank}: still running, killed because another rank had failed"
        return f"rank {self.rank}: {end} after {self.duration:.2f} s"

    def report(self) -> str:
        """Its end and its output as one block."""
        lines = [f"──── {self} ────"]
        for title, text in (
            ("stdout", self.stdout),
            ("stderr", self.stderr),
            ("stacks at the deadline", self.stacks),
        ):
            if text.strip():
                cut = "… " if len(text) > _SHOWN else ""
                lines += [f"[{title}]", cut + text[-_SHOWN:].rstrip()]
        if len(lines) == 1:
            lines.append("(no output)")
        return "\n".join(lines)


def trim_stacks(text: str) -> str:
    """Drop the frames from faulthandler's text that lie below the user's program."""
    kept, below = [], False
    for line in text.splitlines():
        if not line.startswith("  File "):
            below = False  # the head of the next thread
        elif line.startswith(f'  File "{_OWN_FOLDER}'):
            below = True
        if not below:
            kept.append(line)
    return "\n".join(kept)


class RanksFailed(AssertionError):
    """A rank ended with something else than 0; an AssertionError, as a failed check of a test."""

    def __init__(self, what: str, results: Sequence[RankResult], first: RankResult) -> None:
        """Make the message: the first rank that failed, then what each of them printed.

        Args:
            what: the target that ran.
            results: all ranks.
            first: the one that failed first.
        """
        self.results = list(results)
        self.first = first
        blocks = [first, *(result for result in results if result is not first)]
        super().__init__(
            f"{what} on {len(results)} ranks: {self._summary()}\n"
            + "\n".join(result.report() for result in blocks)
        )

    def _summary(self) -> str:
        return f"the first to fail is {self.first}"


class RanksTimeout(RanksFailed, TimeoutError):
    """Ranks that still ran when their time was over; the message shows their Python stacks."""

    def _summary(self) -> str:
        late = [result for result in self.results if result.overdue]
        numbers = ", ".join(str(result.rank) for result in late)
        word = "rank" if len(late) == 1 else "ranks"
        return f"{word} {numbers} did not end within {late[0].duration:.1f} s"
