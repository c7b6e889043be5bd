"""The failure report of a pod: the first cause among its ranks, and what an operator does of it."""

import json
import re
import signal
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from trainkit.errors import ExitCode
from trainkit.launch.ends import End, RankEnd, by_cause
from trainkit.launch.termination import LARGEST, cut, cut_middle
from trainkit.lifecycle.hints import (
    CRASHES,
    describe_signal,
    hint_of_exit_code,
    hint_of_signal,
    hint_of_text,
)
from trainkit.redaction import redacted
from trainkit.resources.kernel_log import gpu_faults

__all__ = ["PERMANENT", "FailureReport", "RankEnd", "failure_report"]

KilledChild = tuple[int, str, int]
"""Process id, command and signal of a process that a rank had started."""

PERMANENT = frozenset(
    {
        ExitCode.USAGE,
        ExitCode.DATA_INVALID,
        ExitCode.INPUT_MISSING,
        ExitCode.NO_PERMISSION,
        ExitCode.ENVIRONMENT,
    }
)
"""What another start of the ranks cannot change."""

_UNSAID = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGSEGV})
"""Signals that come without a word of the process itself: what it printed last is no hint."""

_DETAILS = 16 << 10
"""Bytes of a traceback or of a tail in the report on standard error."""
_LONGEST = 256 << 10
"""Bytes of a text that is searched for secrets; of what is longer the middle is left out."""
_OTHERS = 20

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Colours, carriage returns and the like, which would be the terminal's of who reads this."""


def failure_report(
    ends: Sequence[RankEnd],
    *,
    host: str,
    oom_kills: int = 0,
    attempts: int = 0,
    killed_children: Sequence[KilledChild] = (),
) -> "FailureReport":
    """Find out what went wrong first among the ranks of this pod.

    Args:
        ends: of all ranks of the last attempt, whether they failed or not.
        host: name of this host.
        oom_kills: how many processes the kernel killed for memory while the ranks ran.
        attempts: how often the ranks had been started again before.
        killed_children: processes that ranks had started and that a signal ended. Those of which
            nobody ends in order (SIGKILL, SIGSEGV …) make a job fail whose ranks noticed nothing.

    Raises:
        ValueError: there are no ends to report.
    """
    if not ends:
        raise ValueError("expected the end of at least one rank, found none")
    crashed = [child for child in killed_children if child[2] in CRASHES]
    return FailureReport(
        by_cause([End(end) for end in ends]),
        host=host,
        oom_kills=oom_kills,
        attempts=attempts,
        crashed=crashed,
    )


class FailureReport:
    """What went wrong, for people on standard error and for the pod's termination message.

    Nothing of it holds a secret of this process's environment.
    """

    def __init__(
        self,
        ends: Sequence[End],
        *,
        host: str,
        oom_kills: int,
        attempts: int,
        crashed: Sequence[KilledChild],
    ) -> None:
        """Report ``ends``, the cause first."""
        self._ends = ends
        self._host = _shown(host)
        self._oom_kills = oom_kills
        self._attempts = attempts
        self._crashed = crashed

    @property
    def first(self) -> RankEnd:
        """The rank whose failure came first, those apart that only followed from others."""
        return self._ends[0].seen

    @property
    def exit_code(self) -> int:
        """What this process is to end with; 0 if neither a rank nor a child of one failed."""
        if self._ends[0].exit_code == 0 and self._crashed:
            return 128 + self._crashed[0][2]
        return self._ends[0].exit_code

    @property
    def retryable_in_place(self) -> bool:
        """Whether starting the ranks again may help."""
        return self.exit_code != 0 and self.exit_code not in PERMANENT

    def headline(self) -> str:
        """What failed first, as one line."""
        return self._sentence()

    def text(self) -> str:
        """The report for standard error: lines that end with a newline; empty if nothing failed."""
        if self.exit_code == 0:
            return ""
        return "\n".join(f"trainkit: {line}" for line in self._lines()) + "\n"

    def termination_message(self) -> str:
        """The report in at most 4,096 bytes of UTF-8; empty if nothing failed.

        First a sentence, then all that a program needs as one line of JSON, then what follows
        for people, shortened from its middle.
        """
        if self.exit_code == 0:
            return ""
        top = f"{cut(self._sentence(), 700)}\n{self._json()}\n"
        room = LARGEST - len(top.encode())
        others = cut("\n".join(self._others()), 600)
        details = "\n".join(filter(None, (self._details(), others)))
        return top + cut_middle(details, room)

    def _lines(self) -> Iterator[str]:
        yield self._sentence()
        if self._hint:
            yield f"hint: {self._hint}"
        if details := cut_middle(self._details(), _DETAILS):
            yield from (f"  {line}" for line in details.splitlines())
        yield from self._others()
        again = "after" if self._attempts else "without"
        times = f" {self._attempts}" if self._attempts else ""
        yield f"exit code {self.exit_code}, {again}{times} restart{'s' * (self._attempts != 1)}"

    def _sentence(self) -> str:
        end = self._ends[0]
        if end.exit_code == 0:
            pid, command, number = self._crashed[0]
            what = f"a process that a rank had started was killed: {describe_signal(number)}"
            command = _one_line(_shown(command))
            return (
                f"{what}, process {pid} ({cut(command, 200)}) on {self._host}, although all ranks "
                f"ended with 0: what it was to do may be missing"
            )
        name = f"{_name(end)} on {self._host}"
        if end.stopped:
            how = "stopped when it was asked to" if end.seen.asked else "was stopped"
            return f"{name} {how}: {self._what(end)}"
        return f"{name} failed first: {self._what(end)}"

    def _json(self) -> str:
        end = self._ends[0]
        values: dict[str, Any] = {
            "exit_code": self.exit_code,
            "rank": end.seen.rank,
            "host": cut(self._host, 100),
            "error": cut(_shown(end.error), 100),
            "message": cut(_one_line(_shown(end.message)), 500),
            "hint": cut(self._hint, 600),
            "restarts": self._attempts,
        }
        if end.signal:
            values["signal"] = describe_signal(end.signal)
        # A quote or a backslash of the message takes two bytes.
        for size in (500, 200, 50, 0):
            values["message"] = cut(str(values["message"]), size)
            line = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
            if len(line.encode()) <= 2000:
                break
        return line

    def _others(self) -> Iterator[str]:
        later = [end for end in self._ends[1:] if end.seen.exitcode != 0]
        for end in later[:_OTHERS]:
            asked = " (the launcher had asked it to end)" if end.seen.asked else ""
            yield f"after it {_name(end)}: {self._what(end, 200)}{asked}"
        if len(later) > _OTHERS:
            yield f"after it {len(later) - _OTHERS} more ranks"
        for pid, command, number in self._crashed[:_OTHERS]:
            command = cut(_one_line(_shown(command)), 200)
            yield f"process {pid} of a rank was killed: {describe_signal(number)}, {command}"

    def _what(self, end: End, size: int = 2000) -> str:
        what = cut(_one_line(_shown(end.what)), size)
        code = f"exit code {end.exit_code}"
        return what if what == code else f"{what} ({code})"

    def _details(self) -> str:
        """The traceback, or without one what it printed last."""
        end = self._ends[0]
        if end.exit_code == 0 or (end.record is not None and end.record.own):
            return ""
        if end.record is not None and end.record.traceback:
            return _shown(end.record.traceback).strip("\n")
        if not end.output.strip():
            return ""
        return "last lines of its output:\n" + _shown(end.output).strip("\n")

    @cached_property  # it reads the kernel's log, which a restart in place need not wait for
    def _hint(self) -> str:
        return _shown(self._find_hint())

    def _find_hint(self) -> str:
        end = self._ends[0]
        if end.exit_code == 0:
            number = self._crashed[0][2] if self._crashed else 0
            memory = (
                "probably for memory; " if number == signal.SIGKILL and not self._oom_kills else ""
            )
            return memory + hint_of_signal(number, oom_kills=self._oom_kills)
        known = "" if end.record is None or end.signal else end.record.hint
        if not known and end.signal not in _UNSAID:
            known = hint_of_text("\n".join((f"{end.error}: {end.message}", *end.seen.tail[-20:])))
        if not known and end.signal:
            known = hint_of_signal(end.signal, oom_kills=self._oom_kills, asked=end.seen.asked)
        known = known or hint_of_exit_code(end.exit_code)
        faults = [] if end.stopped else gpu_faults(end.time - 60.0)
        if faults:
            known = f"the driver reported {faults[-1]}" + (f"; {known}" if known else "")
        return known


def _name(end: End) -> str:
    rank, label = end.seen.rank, end.seen.label
    return label if rank is None else f"rank {rank} ({label})"


def _shown(text: str) -> str:
    """``text`` as it may be shown: without secrets and without what a terminal would obey."""
    # Secrets before anything is cut, but not in more than can be searched in a moment.
    shown = _CONTROL.sub("", redacted(cut_middle(text, _LONGEST)))
    return shown.encode(errors="replace").decode()  # half of a surrogate pair is no UTF-8


def _one_line(text: str) -> str:
    return " ".join(text.split())
