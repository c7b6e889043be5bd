"""The ranks of this pod: started, watched and ended together."""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainkit.errors import ExitCode
from trainkit.launch.ends import RankEnd, first_failure
from trainkit.launch.entry import Entry
from trainkit.launch.hang import HangWatch, Stuck
from trainkit.launch.nursery import Dying, Ended, Nursery, Stray
from trainkit.launch.output import RankOutput
from trainkit.lifecycle.stacks import DUMP_SIGNAL
from trainkit.waiting import Deadline

__all__ = ["LocalRanks", "RankSpec"]

log = logging.getLogger("trainkit")

_SETTLE = 3.0
"""Seconds in which the cause shows, once a rank has ended that only lost its peers."""
_DUMP_TIME = 2.0
"""Seconds in which ranks write their stacks; one that is stopped never does."""
_MANY_VOICES = 2000
"""Lines in which the cause is looked for where ranks elsewhere share one stream."""
_STOPPED = (ExitCode.DONE, ExitCode.PREEMPTED, ExitCode.INTERRUPTED)
_LAST_WORDS = 0.1
"""Seconds in which others tell that they failed as well, before they are ended."""


@dataclass(frozen=True, slots=True)
class RankSpec:
    """One rank, or another process of a job, to be started."""

    rank: int | None
    local_rank: int
    label: str
    environ: Mapping[str, str]
    reports: bool = True
    """Whether it gets files of its own for a failure, its pulse and its stacks."""


class LocalRanks:
    """Starts ranks by the nursery and knows which of them run and how the others ended."""

    def __init__(
        self,
        nursery: Nursery,
        entry: Entry,
        output: RankOutput,
        folder: Path,
        *,
        forked: bool,
        hang_timeout: float = 0.0,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            nursery: starts them.
            entry: what each of them runs.
            output: where their output goes.
            folder: for error files and stacks.
            forked: whether Python code runs in the nursery's fork.
            hang_timeout: seconds without a step after which a rank is ended; 0 is never.
        """
        self._nursery = nursery
        self._entry = entry
        self._output = output
        self._folder = folder
        self._forked = forked
        self._running: dict[int, RankSpec] = {}
        self._asked: set[int] = set()
        self._dying: dict[int, int] = {}
        self._attempt = -1
        self.ends: list[RankEnd] = []
        """Of this attempt, in the order in which they were seen."""
        self.strays: list[Stray] = []
        """Processes that ended without a parent, while nobody had been asked to end."""
        self.wanted: list[signal.Signals] = []
        """Signals that came for the launcher: the first decides how it ends."""
        self.stuck: list[Stuck] = []
        """Ranks that were ended because they did no step any more, and those that waited."""
        self._hang = HangWatch(hang_timeout)
        self._deadline: Deadline | None = None
        self.sent: signal.Signals | None = None
        """What was sent to them for it, where that is another signal."""

    @property
    def attempt(self) -> int:
        """How often ranks were started here, less one."""
        return self._attempt

    def rank_folder(self, local_rank: int, attempt: int | None = None) -> Path:
        """Folder of one rank's files."""
        number = self._attempt if attempt is None else attempt
        return self._folder / f"attempt_{number}" / str(local_rank)

    def start(self, specs: Sequence[RankSpec]) -> dict[int, int]:
        """Start all, and return their process ids by local rank.

        Raises:
            RetryableError: one cannot be started.
        """
        self._attempt += 1
        self.ends, self.strays, self.stuck, self._asked = [], [], [], set()
        self._dying = {}
        self._hang.reset()
        pids = {}
        for spec in specs:
            folder = self.rank_folder(spec.local_rank)
            folder.mkdir(parents=True, exist_ok=True)
            environ = dict(spec.environ)
            if spec.reports:
                environ |= {
                    "TORCHELASTIC_ERROR_FILE": str(folder / "error.json"),
                    "TRAINKIT_HEARTBEAT_FILE": str(folder / "heartbeat"),
                    "TRAINKIT_STACKS_FILE": str(folder / "stacks"),
                }
            with contextlib.ExitStack() as opened:
                files = self._output.open(spec.label, spec.rank, spec.local_rank, self._attempt)
                for descriptor in files.values():
                    opened.callback(os.close, descriptor)
                pid = self._nursery.spawn(self._entry, environ, files, forked=self._forked)
            self._running[pid] = spec
            pids[spec.local_rank] = pid
            if self.wanted:
                self._nursery.signal(pid, self.sent or self.wanted[0])
        return pids

    @property
    def running(self) -> list[RankSpec]:
        """Those that have not ended."""
        return list(self._running.values())

    @property
    def failed(self) -> bool:
        """Whether one of them ended otherwise than with 0, or is about to."""
        return any(self._codes())

    def pass_on(
        self, number: signal.Signals, grace: float, sent: signal.Signals | None = None
    ) -> None:
        """Send a signal that came for the launcher to every rank's group; from any thread.

        After ``grace`` seconds ``watch`` kills those that are left.

        Args:
            number: what came.
            grace: seconds that they get.
            sent: what to send for it; the same by default.
        """
        self._deadline = Deadline(grace)
        self.wanted.append(number)
        self.sent = sent or number
        for pid in list(self._running):
            self._nursery.signal(pid, self.sent)

    def watch(self, timeout: float) -> None:
        """Wait at most ``timeout`` seconds for ends, and take note of them."""
        if self._deadline is not None and self._deadline.passed:
            self.kill()
        for event in self._nursery.events(timeout):
            self._take(event)
        if self._running and not self._asked:
            self._look_for_hangs()

    def prepare(self, count: int) -> None:
        """Have forks ready for ``count`` ranks that are about to be started."""
        if self._forked:
            self._nursery.prepare(count)

    def foresee(self, count: int) -> None:
        """Be ready for starting ``count`` ranks again, once those that run have begun."""
        if self._forked:
            self._nursery.foresee(count)

    def settle(
        self, grace: float = 0.0, *, successors: int = 0, unless: Collection[int] = ()
    ) -> None:
        """After a failure: wait for its cause if that has not shown, then kill the others.

        Args:
            grace: seconds for ranks that stop together, because one of them was asked to.
            successors: how many ranks are to be started in place of these: then it is not
                waited for what the others have to say.
            unless: exit codes after which nothing is started again.
        """
        self._watch_until(self._somebody_failed, grace)
        self._watch_until(self._cause_is_known, _SETTLE)
        if not successors or any(code in unless for code in self._codes()):
            self._watch_until(self._all_ended, _LAST_WORDS)
            successors = 0
        self.kill()
        self.prepare(successors)  # while the others are taken down, which takes the kernel as long
        self.await_ends()

    def stop(self, number: signal.Signals, grace: float) -> None:
        """Ask all to end, and kill those that have not after ``grace`` seconds."""
        self._ask(number)
        deadline = Deadline(grace)
        while self._running and not deadline.passed:
            self.watch(min(0.1, deadline.left))
        self.kill()
        self.await_ends()

    def kill(self) -> None:
        """Kill all that run, with what they started."""
        self._ask(signal.SIGKILL)

    def await_ends(self) -> None:
        """Wait until all that were killed are gone.

        One that hangs in the kernel (a dead network file system) cannot be killed: it is left.
        """
        deadline = Deadline(10.0)
        while self._running and not deadline.passed:
            self.watch(deadline.left)
        self._running.clear()

    def last_words(self, timeout: float) -> None:
        """Add to the ends what ranks wrote last, once it is read: at most ``timeout`` seconds."""
        self._output.drain(timeout)
        self.ends = [replace(end, tail=tuple(self._tail(end.rank))) for end in self.ends]

    def note_lost_hosts(
        self, lost_host: Callable[[int, Sequence[str]], str], timeout: float
    ) -> None:
        """Take an end for the loss of a host where that is what its output tells.

        Args:
            lost_host: see ``ProgramPlan``.
            timeout: seconds at most for reading what was written last.
        """
        self._output.drain(timeout)
        for number, end in enumerate(self.ends):
            if end.asked:
                continue
            if told := lost_host(end.exitcode, self._output.tail(end.rank, _MANY_VOICES)):
                self.ends[number] = replace(end, exitcode=int(ExitCode.RETRYABLE), told=told)

    def close(self, grace: float = 0.0) -> None:
        """End all that is left of ranks and of what they started, and the nursery."""
        strays = self._nursery.close(grace)
        if not self._asked:
            self.strays += strays

    def _look_for_hangs(self) -> None:
        files = {
            spec.rank: self.rank_folder(spec.local_rank) / "heartbeat"
            for spec in self.running
            if spec.rank is not None
        }
        self.stuck = self._hang.stuck(files)
        if not self.stuck:
            return
        for pid, spec in self._running.items():
            if (self.rank_folder(spec.local_rank) / "stacks").exists():
                self._nursery.signal(pid, DUMP_SIGNAL)
        deadline = Deadline(_DUMP_TIME)
        while not deadline.passed and not all(self._stacks(spec) for spec in self.running):
            time.sleep(0.05)
        for stuck in self.stuck:
            log.error("%s", stuck)
        for spec in self.running:
            stacks = self._stacks(spec) or "none: its process does not answer"
            log.error("stacks of rank %s:\n%s", spec.rank, stacks.rstrip())
        self.kill()
        self.await_ends()

    def _stacks(self, spec: RankSpec) -> str:
        try:
            path = self.rank_folder(spec.local_rank) / "stacks"
            return path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def _tail(self, rank: int | None) -> list[str]:
        if rank is not None:
            return self._output.tail(rank)
        return first_failure(self._output.tail(None, _MANY_VOICES))

    def _watch_until(self, enough: Callable[[], bool], seconds: float) -> None:
        deadline = Deadline(seconds)
        while not deadline.passed and self._running and not enough():
            self.watch(min(0.02, deadline.left))

    def _somebody_failed(self) -> bool:
        return any(code not in _STOPPED for code in self._codes())

    def _cause_is_known(self) -> bool:
        return any(code not in (0, ExitCode.RETRYABLE) for code in self._codes())

    def _codes(self) -> list[int]:
        """Exit codes of those that have ended, and of those that have begun to."""
        return [*(end.exitcode for end in self.ends), *self._dying.values()]

    def _all_ended(self) -> bool:
        return not self._running

    def _ask(self, number: signal.Signals) -> None:
        self._asked.update(self._running.keys() - self._dying.keys())
        if self._running:
            self._nursery.signal_all(self._running, number)

    def _take(self, event: Dying | Ended | Stray) -> None:
        if isinstance(event, Dying):
            if event.pid in self._running and event.pid not in self._asked:
                self._dying[event.pid] = event.exitcode
            return
        if isinstance(event, Stray):
            if not self._asked:
                self.strays.append(event)
            return
        spec = self._running.pop(event.pid, None)
        self._dying.pop(event.pid, None)
        if spec is None:
            return
        error_file = self.rank_folder(spec.local_rank) / "error.json"
        self.ends.append(
            RankEnd(
                rank=spec.rank,
                local_rank=spec.local_rank,
                label=spec.label,
                pid=event.pid,
                exitcode=event.exitcode,
                time=event.time,
                error_file=error_file if error_file.exists() else None,
                asked=event.pid in self._asked,
            )
        )
