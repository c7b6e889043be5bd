"""How ranks ended, and which of these ends was the cause of the others."""

import math
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainkit.errors import ExitCode
from trainkit.lifecycle.causes import is_watchdog_abort, tells_peer_loss
from trainkit.lifecycle.error_file import read_error_file
from trainkit.lifecycle.failure import FailureRecord
from trainkit.lifecycle.hints import CRASHES, describe_signal

__all__ = ["End", "RankEnd", "by_cause", "first_failure"]

_STOPPED = frozenset({ExitCode.PREEMPTED, ExitCode.INTERRUPTED})
_STOPS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})

_RAISED = re.compile(
    r"(?P<error>[A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt))(?::\s*(?P<message>.*))?$"
)
"""The last line of a traceback."""
_TOLD = re.compile(r"trainkit: rank \d+: (?!hint: |SIG)(?P<message>.*)")
"""What a rank of ours says of an error that needs no traceback."""
_LAST = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnd:
    """How one rank's process ended."""

    rank: int | None
    """None for a process that is no rank, such as mpirun."""
    local_rank: int
    label: str
    """What its output is marked with, such as ``worker-1 r5``."""
    pid: int
    exitcode: int
    """As ``subprocess`` has it: negative is the signal that ended it."""
    time: float
    """Seconds since the epoch when the end was seen."""
    error_file: Path | None
    """``TORCHELASTIC_ERROR_FILE`` of this rank."""
    asked: bool = False
    """The launcher had told it to end before it ended."""
    tail: tuple[str, ...] = ()
    """Last lines of its standard error."""
    told: str = ""
    """What is known of the end that its exit code does not tell."""


class End:
    """A ``RankEnd`` and what its error file and its output tell of it."""

    def __init__(self, seen: RankEnd) -> None:
        """Read what ``seen`` left."""
        self.seen = seen
        self.record: FailureRecord | None = (
            None if seen.exitcode == 0 else read_error_file(seen.error_file)
        )
        self.output = "\n".join(seen.tail)
        self.watchdog = self.signal == signal.SIGABRT and is_watchdog_abort(
            self.output if self.record is None else f"{self.record.message}\n{self.output}"
        )
        self.error, self.message = self._words()

    @property
    def signal(self) -> int:
        """Number of the signal that ended it, 0 if none; a shell tells one as 128 + number."""
        code = self.seen.exitcode
        if code < 0:
            return -code
        known = {128 + number for number in CRASHES}
        return code - 128 if code in known else 0

    @property
    def exit_code(self) -> int:
        """As operators are to see it."""
        if self.watchdog:
            return ExitCode.RETRYABLE
        code = self.seen.exitcode
        if code < 0 and self.seen.asked and self.record is not None:
            return self.record.exit_code  # it had failed already, and was late to end
        return code if code >= 0 else 128 - code

    @property
    def time(self) -> float:
        """When it failed, in seconds since the epoch: by its own record, if that can be."""
        if self.record is None or not math.isfinite(self.record.time) or self.record.time <= 0:
            return self.seen.time
        return min(self.record.time, self.seen.time)

    @property
    def peer_lost(self) -> bool:
        """It ended because another rank was gone."""
        if self.watchdog:
            return True
        if self.signal:
            return False
        if self.record is not None:
            return self.record.peer_lost
        return self.exit_code == ExitCode.RETRYABLE or tells_peer_loss(self.error, self.message)

    @property
    def stopped(self) -> bool:
        """It ended as somebody wished."""
        code = self.seen.exitcode
        return code == 0 or code in _STOPPED or -code in _STOPS

    @property
    def what(self) -> str:
        """In one phrase."""
        if self.seen.exitcode == 0:
            return "ended in order"
        if self.watchdog:
            return "aborted by the watchdog of collectives"
        told = f"{self.error}: {self.message}".strip(": ") if self.error or self.message else ""
        if self.signal:
            ended = f"ended by {describe_signal(self.signal)}"
            return f"{ended}, after {told}" if told and self.record is not None else ended
        return told or f"exit code {self.exit_code}"

    def _words(self) -> tuple[str, str]:
        if self.record is not None:
            return self.record.error, self.record.message
        if self.seen.told:
            return "", self.seen.told
        for line in reversed(self.seen.tail if self.seen.exitcode > 0 else ()):
            if raised := _RAISED.match(line.strip()) if line[:1].strip() else None:
                return raised["error"].rpartition(".")[2], raised["message"] or ""
        return "", ""


def first_failure(lines: Sequence[str]) -> list[str]:
    """Of what several processes wrote to one stream, such as mpirun's ranks, what tells the cause.

    The first traceback that is not of a lost peer, or a message of ours in its place; without
    either, the last lines.
    """
    begin: int | None = None
    for at, line in enumerate(lines):
        if line.startswith("Traceback ("):
            begin = at
        elif begin is not None and (raised := _RAISED.match(line)):
            if not tells_peer_loss(raised["error"].rpartition(".")[2], raised["message"] or ""):
                return list(lines[begin : at + 1])
            begin = None
        elif (told := _TOLD.match(line)) and not tells_peer_loss("", told["message"]):
            return [line]
    return list(lines[-_LAST:])


def by_cause(ends: Sequence[End]) -> list[End]:
    """``ends``, the cause first, consequences after it, those that did not fail last."""
    failed = [end for end in ends if end.seen.exitcode != 0]
    others = [end for end in ends if end.seen.exitcode == 0]
    first = min((end.time for end in failed if not end.seen.asked), default=math.inf)
    failed.sort(key=lambda end: (_distance(end, first), end.time, _rank(end)))
    return failed + sorted(others, key=_rank)


def _distance(end: End, first: float) -> int:
    """How far ``end`` is from being a cause: 0 is one.

    Args:
        end: of a rank that failed.
        first: when the first rank failed that had not been asked to end.
    """
    own = not end.peer_lost and not end.stopped
    recorded = end.record is not None and not end.record.peer_lost
    # What a rank recorded before any other failed is no answer to having been asked to end.
    if own and (not end.seen.asked or (recorded and end.time < first)):
        return 0
    if not end.seen.asked:
        return 2 if end.peer_lost else 1
    if own:
        return 4 if end.signal == signal.SIGKILL else 3
    return 5


def _rank(end: End) -> int:
    return -1 if end.seen.rank is None else end.seen.rank
