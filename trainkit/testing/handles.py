"""Ranks that run: their handles, and the wait for their end."""

import pickle
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from trainkit.errors import DeadlineError
from trainkit.testing.connection import Connection, NurseryLost
from trainkit.testing.results import RankResult, RanksFailed, RanksTimeout, trim_stacks
from trainkit.testing.targets import Target
from trainkit.waiting import Deadline

__all__ = ["RankHandle", "Ranks"]

_LINGER = 3.0
"""Seconds that the others get to end by themselves, and to say more, once a rank has failed."""

_SLACK = 30.0
"""Seconds for stacks, kills and reaping on a busy machine, after the time of a run is over."""


class RankHandle:
    """One running rank."""

    def __init__(self, ranks: "Ranks", rank: int, pid: int) -> None:
        """Made by `start_ranks`.

        Args:
            ranks: the run that it belongs to.
            rank: its place in the run.
            pid: its process id; also that of its session and process group.
        """
        self.rank, self.pid = rank, pid
        self._ranks = ranks

    @property
    def running(self) -> bool:
        """Whether it has not ended, as far as is known without waiting."""
        return self._ranks.ended(self.rank) is None

    def signal(self, number: int, *, group: bool = False) -> bool:
        """Send it a signal.

        Args:
            number: which signal, such as ``signal.SIGTERM``.
            group: to its process group, which is the processes it started too, unless they
                left the group.

        Returns:
            Whether it was still there to get the signal.
        """
        return self._ranks.signal(self.rank, number, group=group)

    def kill(self) -> bool:
        """Send SIGKILL to it and its process group, as the out-of-memory killer would."""
        return self.signal(signal.SIGKILL, group=True)

    def wait(self, timeout: float | None = None) -> RankResult:
        """Wait until it has ended, and return how; never raises because it failed.

        Args:
            timeout: seconds; by default as long as the run may take.

        Raises:
            RanksTimeout: the time of the run was over first.
            DeadlineError: ``timeout`` seconds were over first; the rank still runs.
        """
        return self._ranks.wait_for_rank(self.rank, timeout)

    def output(self) -> str:
        """What it has printed so far: stdout, then stderr."""
        return self._ranks.read(self.rank, "stdout") + self._ranks.read(self.rank, "stderr")

    def wait_for(self, text: str, timeout: float = 30.0) -> str:
        """Wait until its output holds ``text``, and return the output.

        Raises:
            RanksFailed: it ended and never printed that.
            DeadlineError: ``timeout`` seconds were over first.
        """
        return self._ranks.wait_for_text(self.rank, text, timeout)


class Ranks(Sequence[RankHandle]):
    """The ranks of one run, in order."""

    def __init__(self, connection: Connection, target: Target, folder: Path) -> None:
        """Made by `start_ranks`.

        Args:
            connection: to the nursery that forks them.
            target: what they run.
            folder: where the run's files are.
        """
        self._connection, self._target, self._folder = connection, target, folder
        self._handles: list[RankHandle] = []
        self._ends: dict[int, dict[str, Any]] = {}  # in the order in which they ended
        self._cut_off: set[int] = set()
        self._begun = self._closed = False
        self._deadline = Deadline(0.0)
        self._run = connection.new_run(self._hear)

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._handles)

    @overload
    def __getitem__(self, place: int) -> RankHandle: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[RankHandle]: ...

    def __getitem__(self, place: int | slice) -> RankHandle | Sequence[RankHandle]:
        return self._handles[place]

    def wait(self, *, check: bool = True) -> list[RankResult]:
        """Wait until all have ended, and return how, in the order of ranks.

        Args:
            check: raise if one failed. The others then get 3 seconds to end too, and are killed;
                with False they get the time that the run has.

        Raises:
            RanksFailed: a rank ended with an exit code other than 0 (with ``check``).
            RanksTimeout: the time was over; their stacks are in the message, and all are dead.
        """
        whole = f"the ranks of {self._target}"
        self._listen(lambda: self._all_ended() or (check and self._failures()), whole)
        if check and self._failures() and not self._all_ended():
            try:
                grace = Deadline(min(_LINGER, self._deadline.left))
                self._connection.listen(self._all_ended, what=whole, deadline=grace)
            except DeadlineError:
                self._cut_off = {handle.rank for handle in self if handle.running}
                for rank in self._cut_off:
                    self.signal(rank, signal.SIGKILL, group=True)
            self._listen(self._all_ended, whole)
        results = [self._result(rank) for rank in range(len(self))]
        self._raise_if_overdue(results)
        if check and self._failures():
            raise RanksFailed(str(self._target), results, results[self._failures()[0]])
        return results

    def ended(self, rank: int) -> dict[str, Any] | None:
        """The nursery's word on the end of ``rank``; None while it runs."""
        if rank not in self._ends and not self._closed:
            moment = Deadline(0.001)
            try:
                self._connection.listen(lambda: rank in self._ends, what="news", deadline=moment)
            except DeadlineError:
                return None
        return self._ends.get(rank)

    def signal(self, rank: int, number: int, *, group: bool) -> bool:
        """Send a signal to ``rank`` and say whether it was there."""
        if rank in self._ends or self._closed:
            return False
        request = {"run": self._run, "rank": rank, "number": int(number), "group": group}
        return bool(self._connection.ask(op="signal", **request)["delivered"])

    def wait_for_rank(self, rank: int, timeout: float | None) -> RankResult:
        """Wait until ``rank`` has ended; see `RankHandle.wait`."""
        what = f"rank {rank} of {self._target} to end"
        self._listen(lambda: rank in self._ends, what, timeout)
        result = self._result(rank)
        self._raise_if_overdue([result])
        return result

    def wait_for_text(self, rank: int, text: str, timeout: float) -> str:
        """Wait until ``rank`` has printed ``text``; see `RankHandle.wait_for`."""

        def seen() -> bool:
            return text in self[rank].output() or rank in self._ends

        try:
            self._listen(seen, f"rank {rank} of {self._target} to print {text!r}", timeout)
        except DeadlineError as late:
            raise DeadlineError(f"{late}. It printed:\n{self[rank].output()[-4000:]}") from None
        output = self[rank].output()
        if text not in output:
            result = self._result(rank)
            raise RanksFailed(f"{self._target} (never printed {text!r})", [result], result)
        return output

    def read(self, rank: int, name: str) -> str:
        """What is in a file of ``rank``; empty when it is not there."""
        try:
            return (self._folder / f"rank-{rank}" / name).read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def begin(self, n: int, timeout: float) -> None:
        """Have the nursery fork the ranks."""
        self._deadline, self._begun = Deadline(timeout), True
        started = self._connection.ask(
            op="start", run=self._run, folder=str(self._folder), n=n, timeout=timeout
        )
        if started["error"]:
            raise NurseryLost(started["error"])
        self._handles = [RankHandle(self, rank, pid) for rank, pid in enumerate(started["pids"])]

    def close(self) -> None:
        """Kill whatever is left of the run, by group and by descent, and reap it."""
        if not self._begun or self._closed:
            return
        self._connection.tell(op="end", run=self._run)
        what = f"the processes of {self._target} to die of SIGKILL"
        self._connection.listen(lambda: self._closed, what=what, deadline=Deadline(_SLACK))
        self._connection.forget(self._run)

    def _hear(self, event: dict[str, Any]) -> None:
        if event["event"] == "ended":
            self._ends[event["rank"]] = event
        else:
            self._closed = True

    def _all_ended(self) -> bool:
        return len(self._ends) == len(self)

    def _failures(self) -> list[int]:
        return [rank for rank, end in self._ends.items() if end["code"] != 0]

    def _listen(self, until: Any, what: str, timeout: float | None = None) -> None:
        # The nursery enforces the run's own deadline; here only its silence would be an error.
        seconds = self._deadline.left + _SLACK if timeout is None else timeout
        self._connection.listen(until, what=what, deadline=Deadline(seconds))

    def _raise_if_overdue(self, results: list[RankResult]) -> None:
        late = next((result for result in results if result.overdue), None)
        if late is not None:
            raise RanksTimeout(str(self._target), results, late)

    def _result(self, rank: int) -> RankResult:
        end = self._ends[rank]
        value = None
        pickled = self._folder / f"rank-{rank}" / "value.pickle"
        if pickled.exists():
            value = pickle.loads(pickled.read_bytes())  # noqa: S301 - written by our own rank
        return RankResult(
            rank=rank,
            exit_code=end["code"],
            value=value,
            stdout=self.read(rank, "stdout"),
            stderr=self.read(rank, "stderr"),
            duration=end["duration"],
            overdue=end["overdue"],
            cut_off=rank in self._cut_off,
            stacks=trim_stacks(self.read(rank, "stacks")),
        )
