"""Running what a plan says, from the first rank to the report."""

import contextlib
import logging
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainkit import config
from trainkit.errors import DependencyError, ExitCode
from trainkit.launch.entry import Entry
from trainkit.launch.hang import Stuck
from trainkit.launch.local_ranks import LocalRanks, RankSpec
from trainkit.launch.nursery import Nursery
from trainkit.launch.output import OutputOptions, RankOutput
from trainkit.launch.plan import ProgramPlan, RankPlan
from trainkit.launch.rank import preload
from trainkit.launch.report import failure_report
from trainkit.launch.supervisor import Supervisor
from trainkit.launch.termination import write_termination_message
from trainkit.resources.cpus import cpu_limit
from trainkit.resources.memory import oom_kills

__all__ = ["Launch"]

log = logging.getLogger("trainkit")

_DRAIN = 5.0
"""Seconds in which the last output of ranks is copied."""
_ORDERLY = (ExitCode.DONE, ExitCode.PREEMPTED, ExitCode.INTERRUPTED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One launch of this pod: what is to run, and how.

    ``start`` must be called while this process has one thread; it imports torch where ranks
    are to be forked.
    """

    entry: Entry
    name: str
    """Of this pod in labels, such as ``worker-1``."""
    environ: Mapping[str, str]
    """Of the ranks, but for what is added for each."""
    output: OutputOptions
    forked: bool
    """Whether ranks are forks that have torch."""
    grace_period: float
    timeout: float
    notices: Sequence[signal.Signals]
    hang_timeout: float = 0.0

    def start(self, *, restarts: bool = False) -> Nursery:
        """Import what ranks share, and fork the nursery.

        Args:
            restarts: whether ranks may be started again.

        Raises:
            DependencyError: torch is not installed, or does not work.
        """
        if self.forked:
            try:
                preload(later=restarts)
            except (ImportError, OSError) as reason:
                raise _without_torch(reason) from None
        return Nursery.start()

    def run_ranks(
        self,
        plan: RankPlan,
        nursery: Nursery,
        local_addr: str | None = None,
        await_needs: Callable[[], None] | None = None,
    ) -> int:
        """Run the ranks of ``plan`` to their end, and return the exit code of this process.

        Args:
            plan: what to run.
            nursery: starts them.
            local_addr: address of this node for others.
            await_needs: called before the first start: waits for what they need.

        Raises:
            DeadlineError: the other nodes did not come.
            Preempted: a notice came while no rank was running.
            DependencyError: torch is not installed.
        """
        try:
            from trainkit.launch import elastic
        except ImportError as reason:
            nursery.close()
            raise _without_torch(reason) from None
        # Only the handler's own store would be served to all rounds; FreshStores has its own.
        config.set_environ({"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})
        environ = self._shared_cpus(plan.nproc)
        with self._ranks(nursery, plan.run_id) as (ranks, supervisor, ooms):
            if await_needs is not None:
                await_needs()
            rendezvous = elastic.rendezvous_of(plan, self.timeout, local_addr)
            agent = elastic.RankAgent(
                plan, rendezvous, ranks, environ, name=self.name, grace_period=self.grace_period
            )
            with elastic.rendezvous_errors(plan, self.timeout):
                try:
                    agent.run()
                except elastic.Stopped:
                    pass
                else:
                    rendezvous.shutdown()
            lost = rendezvous.lost_nodes() if _only_lost_peers(ranks) else []
            return self._finish(ranks, supervisor, ooms, lost)

    def run_programs(
        self,
        plan: ProgramPlan,
        nursery: Nursery,
        max_restarts: int = 0,
        await_needs: Callable[[], None] | None = None,
    ) -> int:
        """Run the processes of ``plan`` to their end, and return the exit code of this process.

        Args:
            plan: what to run.
            nursery: starts them.
            max_restarts: how often all are started again after a failure that may pass.
            await_needs: called before each start: waits for what they need.

        Raises:
            Preempted: a notice came while nothing was running.
        """
        specs = self._specs(plan)
        with self._ranks(nursery, "program") as (ranks, supervisor, ooms):
            supervisor.look_after(ranks, plan.stop_signal)
            for left in range(max_restarts, -1, -1):
                if await_needs is not None:
                    await_needs()
                ranks.start(specs)
                while ranks.running and not ranks.failed:
                    ranks.watch(1.0)
                if ranks.failed and not ranks.wanted:
                    ranks.settle(self.grace_period)
                while ranks.running:
                    ranks.watch(1.0)
                if plan.lost_host is not None:
                    ranks.note_lost_hosts(plan.lost_host, _DRAIN)
                if ranks.wanted or not ranks.failed or not left:
                    break
                report = failure_report(ranks.ends, host=socket.gethostname())
                if not report.retryable_in_place:
                    break
                log.warning(
                    "%s; starting again in place, %d of %d restarts are left",
                    report.headline(),
                    left - 1,
                    max_restarts,
                )
            return self._finish(ranks, supervisor, ooms, [])

    def _specs(self, plan: ProgramPlan) -> list[RankSpec]:
        several = len(plan.environs) > 1
        shared = self._shared_cpus(len(plan.environs)) if plan.reports else self.environ
        specs = []
        for local_rank, additions in enumerate(plan.environs):
            rank = None if plan.rank is None else plan.rank + local_rank
            label = f"{plan.label or self.name} r{rank}" if several else plan.label or self.name
            environ = {**shared, **additions}
            specs.append(RankSpec(rank, local_rank, label, environ, plan.reports))
        return specs

    @contextlib.contextmanager
    def _ranks(self, nursery: Nursery, run_id: str) -> Iterator[tuple[LocalRanks, Supervisor, int]]:
        with tempfile.TemporaryDirectory(prefix="trainkit-ranks-") as folder:
            nursery.remove_at_the_end(Path(folder))
            output = RankOutput(self.output, run_id, Path(folder))
            ranks = LocalRanks(
                nursery,
                self.entry,
                output,
                output.folder,
                forked=self.forked,
                hang_timeout=self.hang_timeout,
            )
            supervisor = Supervisor(notices=self.notices, grace_period=self.grace_period)
            try:
                with supervisor:
                    supervisor.look_after(ranks)
                    yield ranks, supervisor, oom_kills() or 0
            finally:
                ranks.close()
                output.close(_DRAIN)

    def _finish(
        self, ranks: LocalRanks, supervisor: Supervisor, ooms: int, lost: Sequence[int]
    ) -> int:
        ranks.close(0.0)
        ranks.last_words(_DRAIN)
        failed = [end for end in ranks.ends if end.exitcode]
        if ranks.wanted:
            number = ranks.wanted[0]
            if not ranks.ends:
                return supervisor.code_after(number)
            sent = ranks.sent or number
            orderly = (*_ORDERLY, -number, 128 + number, -sent, 128 + sent)
            if all(end.exitcode in orderly for end in failed):
                return supervisor.code_after(number) if failed else ExitCode.DONE
        if ranks.stuck:
            return self._say_of_hang(ranks.stuck)
        killed = [(s.pid, s.command, -s.exitcode) for s in ranks.strays if s.exitcode < 0]
        if not failed and not any(number == signal.SIGKILL for _, _, number in killed):
            return ExitCode.DONE
        report = failure_report(
            ranks.ends,
            host=socket.gethostname(),
            oom_kills=max(0, (oom_kills() or 0) - ooms),
            attempts=ranks.attempt,
            killed_children=killed,
        )
        text = report.text()
        if lost:
            nodes = ", ".join(map(str, lost))
            text += f"trainkit: node {nodes} gives no sign of life: its launcher is lost\n"
        print(text, end="", file=sys.stderr, flush=True)
        path = config.settings().termination_log
        write_termination_message(report.termination_message(), path)
        return report.exit_code

    def _say_of_hang(self, stuck: Sequence[Stuck]) -> int:
        """Report ranks that did no step any more: the one that is behind is the cause."""
        text = (
            f"trainkit: {stuck[0]}: ended after TRAINKIT_HANG_TIMEOUT={self.hang_timeout:g} s "
            f"({len(stuck)} of the ranks here stood still; their stacks are in the log)"
        )
        print(text, file=sys.stderr, flush=True)
        write_termination_message(text, config.settings().termination_log)
        return ExitCode.RETRYABLE

    def _shared_cpus(self, nproc: int) -> dict[str, str]:
        """Divide the pod's CPUs over its ranks, where the user has not set a number of threads.

        torch starts one thread a core of the host in every rank, and torchrun makes it 1.
        """
        if self.environ.get("OMP_NUM_THREADS"):
            return dict(self.environ)
        limit, _ = cpu_limit()
        return {**self.environ, "OMP_NUM_THREADS": str(max(1, int(limit) // nproc))}


def _without_torch(reason: Exception) -> DependencyError:
    return DependencyError(
        f"ranks are to be started by torch's elastic agent, and torch cannot be imported "
        f'({reason}). Install "trainkit[torch]", or torch in the build that fits your GPUs.'
    )


def _only_lost_peers(ranks: LocalRanks) -> bool:
    codes = {end.exitcode for end in ranks.ends if end.exitcode and not end.asked}
    return bool(codes) and codes <= {int(ExitCode.RETRYABLE)}
