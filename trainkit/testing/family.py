"""The processes of one run: its ranks, all that they started, and their deadline."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainkit.processes.table import children_exist, descendants, process_table
from trainkit.testing.rank import DUMP_SIGNAL
from trainkit.waiting import Deadline

__all__ = ["Family", "kill"]

_DUMP_TIME = 5.0
"""Seconds that overdue ranks get to write their stacks; a stopped process never does."""


@dataclass(slots=True)
class Child:
    """One rank, seen from its parent."""

    number: int
    pid: int
    began: float
    ended: bool = False
    overdue: bool = False
    stacks: int = -1
    """Bytes of its stacks file when it was last looked at."""


class Family:
    """One run's ranks and their descendants; ends them at the deadline or when asked to."""

    def __init__(self, folder: Path, timeout: float) -> None:
        """Begin a run.

        Args:
            folder: the run's files.
            timeout: seconds until ranks that still run are asked for their stacks and killed.
        """
        self.folder = folder
        self.children: list[Child] = []
        self._strays: set[int] = set()
        self._deadline = Deadline(timeout)
        self._phase: Literal["running", "dumping", "ending"] = "running"
        self._dump_deadline = Deadline(_DUMP_TIME)
        self._close_asked = False

    def add(self, number: int, pid: int) -> None:
        """Take in the rank ``number``, forked just now."""
        self.children.append(Child(number, pid, time.monotonic()))

    def adopt(self, pid: int) -> None:
        """Take in a process that a rank left behind."""
        self._strays.add(pid)

    def pids(self) -> set[int]:
        """Its own children of the nursery that live: ranks, and what ranks left behind."""
        return {child.pid for child in self._running()} | self._strays

    def is_session(self, session: int) -> bool:
        """Whether ``session`` is that of one of its ranks."""
        return any(child.pid == session for child in self.children)

    def reaped(self, pid: int, status: int) -> dict[str, Any] | None:
        """Note the end of a child of the nursery; what to tell, if it was one of the ranks."""
        self._strays.discard(pid)
        for child in self._running():
            if child.pid == pid:
                child.ended = True
                return {
                    "rank": child.number,
                    "code": os.waitstatus_to_exitcode(status),
                    "duration": time.monotonic() - child.began,
                    "overdue": child.overdue,
                }
        return None

    def signal(self, rank: int, number: int, *, group: bool) -> bool:
        """Send a signal to a rank, or to it and its descendants that stayed in its group.

        Returns:
            Whether the rank was still there.
        """
        child = self.children[rank]
        if child.ended:
            return False
        if group:
            # Before its setsid the rank has no group of its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, number)
                return True
        os.kill(child.pid, number)
        return True

    def close(self) -> None:
        """End everything; `finished` tells when that is done."""
        self._close_asked = True
        self._phase = "ending"

    def finished(self) -> bool:
        """Whether it was closed and nothing of it is left."""
        return self._close_asked and not self._members()

    def next_moment(self) -> float:
        """When `check_deadline` has something to do, on the monotonic clock."""
        now = time.monotonic()
        if self._phase == "dumping":
            return now + 0.05
        if self._phase == "ending":
            return now + 0.01 if self._close_asked or self.pids() else now + 60.0
        return now + self._deadline.left

    def check_deadline(self) -> None:
        """Ask overdue ranks for their stacks, and kill what has to end."""
        if self._phase == "running" and self._deadline.passed:
            self._phase, self._dump_deadline = "dumping", Deadline(_DUMP_TIME)
            for child in self._running():
                child.overdue = True
                kill(child.pid, DUMP_SIGNAL)
        elif self._phase == "dumping" and (self._dump_deadline.passed or self._dumped()):
            self._phase = "ending"
        if self._phase == "ending":
            self.kill()

    def kill(self) -> None:
        """Send SIGKILL to the ranks and to all that descends from them."""
        for pid in self._members():
            kill(pid)

    def _running(self) -> Iterator[Child]:
        return (child for child in self.children if not child.ended)

    def _members(self) -> set[int]:
        if not children_exist():
            return set()  # nobody can descend from a rank then: orphans become our children
        table = process_table()
        sessions = {child.pid for child in self.children}
        found = {pid for pid in self.pids() if pid in table}
        for pid in tuple(found):
            found |= descendants(pid, table).keys()
        for pid, info in descendants(os.getpid(), table).items():
            if info.session in sessions or info.group in sessions:
                found.add(pid)
        return {pid for pid in found if pid in self.pids() or not table[pid].zombie}

    def _dumped(self) -> bool:
        done = True
        for child in self._running():
            try:
                size = (self.folder / f"rank-{child.number}" / "stacks").stat().st_size
            except OSError:
                size = 0
            done = done and size > 0 and size == child.stacks
            child.stacks = size
        return done


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process that may be gone by now."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
