"""Starts ranks as real processes, and waits for them with a deadline that is always enforced."""

import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainkit.config import environ
from trainkit.errors import DeadlineError, UsageError
from trainkit.testing.connection import Connection, NurseryLost, nursery_for
from trainkit.testing.environs import torchrun_environ
from trainkit.testing.ports import PortReservation
from trainkit.testing.results import RankResult, RanksFailed, RanksTimeout
from trainkit.testing.targets import Target, TargetLike
from trainkit.waiting import Deadline

__all__ = ["RankHandle", "Ranks", "run_ranks", "start_ranks"]

PRELOAD = ("torch",)

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
        self._closed = False
        self._deadline = Deadline(0.0)
        self._run = connection.new_run(self._hear)

    def __len__(self) -> int:
        return len(self._handles)

    def __getitem__(self, place: Any) -> Any:
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

        self._listen(seen, f"rank {rank} of {self._target} to print {text!r}", timeout)
        output = str(self[rank].output())
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
        self._deadline = Deadline(timeout)
        started = self._connection.ask(
            op="start", run=self._run, folder=str(self._folder), n=n, timeout=timeout
        )
        if started["error"]:
            raise NurseryLost(started["error"])
        self._handles = [RankHandle(self, rank, pid) for rank, pid in enumerate(started["pids"])]

    def close(self) -> None:
        """Kill whatever is left of the run, by group and by descent, and reap it."""
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
            stacks=self.read(rank, "stacks"),
        )


def run_ranks(
    target: TargetLike,
    n: int,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    argv: Sequence[str] = (),
    env: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
    base_env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    timeout: float = 60.0,
    check: bool = True,
    preload: Sequence[str] = PRELOAD,
) -> list[RankResult]:
    """Run ``target`` in ``n`` processes as torchrun would, and return how each ended.

    Args:
        target: a function at the top level of a module; ``"module:function"`` or
            ``"file.py:function"``; a script (a `Path`, or a text that ends in ``.py``);
            ``"-m module"``.
        n: how many ranks.
        *args: for a function; they and its return value are pickled.
        kwargs: keyword arguments for a function.
        argv: the command line, ``sys.argv[1:]``.
        env: a mapping is laid over torchrun's variables in every rank; a list of ``n`` mappings,
            one a rank, takes the place of torchrun's variables.
        base_env: the environment below ``env``; this process's own by default.
        cwd: the folder to run in; this process's by default.
        timeout: seconds for the whole run. It is always enforced.
        check: raise if a rank failed.
        preload: modules that the ranks find imported. Those that are not installed are passed
            over. Each different tuple has a parent process of its own.

    Raises:
        RanksFailed: a rank ended with another exit code than 0 (with ``check``).
        RanksTimeout: ranks still ran after ``timeout`` seconds, whatever ``check`` is.
        UsageError: the target cannot be run by another process, or the arguments do not fit it.
        InputMissingError: there is no such script.
    """
    with start_ranks(
        target,
        n,
        *args,
        kwargs=kwargs,
        argv=argv,
        env=env,
        base_env=base_env,
        cwd=cwd,
        timeout=timeout,
        preload=preload,
    ) as ranks:
        return ranks.wait(check=check)


@contextmanager
def start_ranks(
    target: TargetLike,
    n: int,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    argv: Sequence[str] = (),
    env: Mapping[str, str] | Sequence[Mapping[str, str]] | None = None,
    base_env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    timeout: float = 60.0,
    preload: Sequence[str] = PRELOAD,
) -> Iterator[Ranks]:
    """Start ranks, hand them out as they run, and leave nothing of them at the end.

    The arguments are those of `run_ranks`. When the block ends, in whatever way, all ranks and
    all that they started are killed and reaped. They end too when this process dies.

    Raises:
        UsageError: the target cannot be run by another process, or the arguments do not fit it.
        InputMissingError: there is no such script.
    """
    described = Target.of(target)
    _check(described, n, args, kwargs, env)
    connection = nursery_for(preload)
    folder = Path(tempfile.mkdtemp(prefix="trainkit-ranks-"))
    port = PortReservation()
    try:
        bottom = dict(environ() if base_env is None else base_env)
        spec = {
            "target": asdict(described),
            "argv": [str(word) for word in argv],
            "cwd": str(Path(cwd or ".").absolute()),
            "path": [path or str(Path.cwd()) for path in sys.path],
            **_environs(bottom, env, n, port.port, folder),
        }
        for rank in range(n):
            (folder / f"rank-{rank}").mkdir()
        (folder / "spec.json").write_text(json.dumps(spec))
        (folder / "call.pickle").write_bytes(pickle.dumps((args, dict(kwargs or {}))))
        ranks = Ranks(connection, described, folder)
        try:
            ranks.begin(n, timeout)
            yield ranks
        finally:
            ranks.close()
    finally:
        port.release()
        shutil.rmtree(folder, ignore_errors=True)


def _check(
    target: Target, n: int, args: Sequence[Any], kwargs: Mapping[str, Any] | None, env: Any
) -> None:
    if n < 1:
        raise UsageError(f"n={n}: expected at least one rank")
    if target.kind != "function" and (args or kwargs):
        raise UsageError(f"{target} is a program: pass its command line as argv=[…]")
    if env is not None and not isinstance(env, Mapping) and len(env) != n:
        raise UsageError(f"env holds {len(env)} environments for n={n} ranks: expected one each")


def _environs(
    bottom: dict[str, str],
    env: Mapping[str, str] | Sequence[Mapping[str, str]] | None,
    n: int,
    port: int,
    folder: Path,
) -> dict[str, Any]:
    if env is not None and not isinstance(env, Mapping):
        return {"base": bottom, "changes": [dict(variables) for variables in env]}
    bottom.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
    if n > 1:
        bottom.setdefault("OMP_NUM_THREADS", "1")  # torchrun does so too
    changes = []
    for rank in range(n):
        error_file = str(folder / f"rank-{rank}" / "error.json")
        variables = torchrun_environ(rank, n, master_port=port, error_file=error_file)
        changes.append(variables | dict(env or {}))
    return {"base": bottom, "changes": changes}
