"""torch's elastic agent, with ranks that the nursery starts.

Rendezvous, restarts and the variables that a rank sees are the agent's own; this file is the
only one that knows it.
"""

import contextlib
import functools
import logging
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import (
    RunResult,
    SimpleElasticAgent,
    WorkerGroup,
    WorkerSpec,
    WorkerState,
)
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from trainkit.errors import DeadlineError, UsageError
from trainkit.launch.local_ranks import LocalRanks, RankSpec
from trainkit.launch.plan import RankPlan
from trainkit.launch.rendezvous import FreshStores, StaticRendezvous
from trainkit.launch.report import PERMANENT, failure_report
from trainkit.waiting import Deadline, backoff

__all__ = ["RankAgent", "Stopped", "rendezvous_errors", "rendezvous_of"]

log = logging.getLogger(__name__)

_LEAVE = 3.0
"""Seconds for which the launcher that serves the store waits for the others to leave."""


class Stopped(Exception):
    """The launcher was asked to end, and its ranks have ended."""


def rendezvous_of(plan: RankPlan, timeout: float, local_addr: str | None = None) -> FreshStores:
    """The rendezvous of ``plan``; nobody is met yet.

    Args:
        plan: what is to be started.
        timeout: seconds to wait for the other nodes.
        local_addr: under which others reach this node.

    Raises:
        UsageError: the backend cannot use the endpoint or the options.
        DeadlineError: what serves the rendezvous cannot be reached.
    """
    if plan.backend == "static":
        host, _, port = plan.endpoint.rpartition(":")
        inner = functools.partial(
            StaticRendezvous,
            host,
            int(port),
            node=plan.node_rank or 0,
            num_nodes=plan.max_nodes,
            run_id=plan.run_id,
            timeout=timeout,
        )
        return FreshStores(inner, timeout, host)
    # Each backend has a name of its own for the same thing.
    names = ("timeout", "join_timeout", "read_timeout")
    options: dict[str, Any] = {**dict.fromkeys(names, max(1, int(timeout))), **plan.options}
    try:
        parameters = RendezvousParameters(
            backend=plan.backend,
            endpoint=plan.endpoint,
            run_id=plan.run_id,
            min_nodes=plan.min_nodes,
            max_nodes=plan.max_nodes,
            local_addr=local_addr,
            **options,
        )
        with rendezvous_errors(plan, timeout):
            return FreshStores(lambda: get_rendezvous_handler(parameters), timeout, None)
    except (TypeError, ValueError) as reason:
        raise UsageError(
            f"the nodes cannot meet at {plan.endpoint!r} by {plan.backend!r}: {reason} Correct "
            f"--rdzv-endpoint, --rdzv-backend or --rdzv-conf (PET_RDZV_ENDPOINT …)."
        ) from None


@contextlib.contextmanager
def rendezvous_errors(plan: RankPlan, timeout: float) -> Iterator[None]:
    """Turn the agent's errors about other pods into one message, and a code that is retried."""
    try:
        yield
    except (RendezvousError, dist.DistError) as reason:
        pods = f"{plan.min_nodes}"
        if plan.max_nodes != plan.min_nodes:
            pods += f" to {plan.max_nodes}"
        first = str(reason).strip().partition("\n")[0] or type(reason).__name__
        raise DeadlineError(
            f"the launchers of {pods} pods did not meet at {plan.endpoint} ({plan.backend}, "
            f"{timeout:.0f} s): {first}. Are all pods running, and is the address right? "
            f"TRAINKIT_TIMEOUT sets the seconds to wait."
        ) from None


class RankAgent(SimpleElasticAgent):
    """The agent of one pod."""

    def __init__(
        self,
        plan: RankPlan,
        rendezvous: FreshStores,
        ranks: LocalRanks,
        environ: Mapping[str, str],
        *,
        name: str,
        grace_period: float,
    ) -> None:
        """Prepare; ``run`` meets the other nodes and starts ranks.

        Args:
            plan: what is to be started.
            rendezvous: where the nodes meet.
            ranks: starts and ends the ranks of this pod.
            environ: of the ranks, but for what the agent adds.
            name: of this pod in labels, such as ``worker-1``.
            grace_period: seconds that ranks get after SIGTERM.
        """
        spec = WorkerSpec(
            role=plan.role,
            local_world_size=plan.nproc,
            rdzv_handler=rendezvous,
            max_restarts=plan.max_restarts,
            monitor_interval=1e-6,  # the wait is in _monitor_workers, where an end interrupts it
            entrypoint=" ".join(plan.command) or "ranks",
        )
        super().__init__(spec, exit_barrier_timeout=300, shutdown_timeout=int(grace_period))
        self._ranks = ranks
        self._environ = environ
        self._name = name
        self._grace_period = grace_period
        self._interval = plan.monitor_interval
        self._virtual_local_rank = plan.virtual_local_rank

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        self._ranks.prepare(worker_group.spec.local_world_size)
        super()._rendezvous(worker_group)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        if self._ranks.wanted:
            raise Stopped
        specs = [self._spec(worker_group, worker) for worker in worker_group.workers]
        pids: dict[int, Any] = dict(self._ranks.start(specs))
        if self._remaining_restarts:
            self._ranks.foresee(len(specs))
        return pids

    def _stop_workers(self, worker_group: WorkerGroup, *_: Any, **__: Any) -> None:
        """End those that run: for a new round of members, or after a failure, when none does."""
        del worker_group
        if self._ranks.running:
            self._ranks.stop(signal.SIGTERM, self._grace_period)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = 30) -> None:
        self._ranks.stop(death_sig, timeout)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        ranks = self._ranks
        ranks.watch(self._interval)
        if ranks.wanted:
            while ranks.running:
                ranks.watch(self._interval)
            raise Stopped
        if ranks.failed:
            count = worker_group.spec.local_world_size if self._remaining_restarts else 0
            ranks.settle(self._grace_period, successors=count, unless=PERMANENT)
            if ranks.wanted:
                raise Stopped
            return self._failed()
        if not ranks.running:
            done: dict[int, Any] = {end.rank: None for end in ranks.ends if end.rank is not None}
            return RunResult(state=WorkerState.SUCCEEDED, return_values=done)
        return RunResult(state=WorkerState.HEALTHY)

    def _exit_barrier(self) -> None:
        """Stay until the ranks of all nodes are done, for they may meet in a store of this node's.

        The launcher that serves it leaves last, or the others' last question would fail loudly.
        """
        store: Any = self._store
        group: Any = self._worker_group
        world = group.group_world_size or 1
        if store is None or world == 1:
            return
        try:
            store.add("trainkit/done", 1)
            if not self._counted(store, "trainkit/done", world, self._exit_barrier_timeout):
                log.warning("not all nodes were done within %.0f s", self._exit_barrier_timeout)
            store.add("trainkit/left", 1)
            if group.group_rank == 0:
                self._counted(store, "trainkit/left", world, _LEAVE)
        except dist.DistError:
            log.debug("the rendezvous ended before this node had left")

    def _counted(self, store: Any, key: str, wanted: int, seconds: float) -> bool:
        deadline = Deadline(seconds)
        for pause in backoff(last=0.2):
            if store.add(key, 0) >= wanted:
                return True
            if self._ranks.wanted:
                raise Stopped
            if deadline.passed:
                break
            time.sleep(pause)
        return False

    def _failed(self) -> RunResult:
        report = failure_report(self._ranks.ends, host=socket.gethostname())
        if not report.retryable_in_place:
            self._remaining_restarts = 0
        elif self._remaining_restarts:
            log.warning(
                "%s; starting again in place, %d of %d restarts are left",
                report.headline(),
                self._remaining_restarts - 1,
                self._worker_group.spec.max_restarts,
            )
        failures = {
            end.rank: ProcessFailure(
                local_rank=end.local_rank,
                pid=end.pid,
                exitcode=end.exitcode,
                error_file=str(end.error_file or Path("/dev/null")),
            )
            for end in self._ranks.ends
            if end.exitcode and end.rank is not None
        }
        return RunResult(state=WorkerState.FAILED, failures=failures)

    def _spec(self, group: WorkerGroup, worker: Any) -> RankSpec:
        spec = group.spec
        environ = {
            **self._environ,
            "RANK": str(worker.global_rank),
            "LOCAL_RANK": str(worker.local_rank),
            "GROUP_RANK": str(group.group_rank),
            "ROLE_RANK": str(worker.role_rank),
            "ROLE_NAME": spec.role,
            "LOCAL_WORLD_SIZE": str(spec.local_world_size),
            "WORLD_SIZE": str(worker.world_size),
            "GROUP_WORLD_SIZE": str(group.group_world_size),
            "ROLE_WORLD_SIZE": str(worker.role_world_size),
            "MASTER_ADDR": str(group.master_addr),
            "MASTER_PORT": str(group.master_port),
            "TORCHELASTIC_RESTART_COUNT": str(spec.max_restarts - self._remaining_restarts),
            "TORCHELASTIC_MAX_RESTARTS": str(spec.max_restarts),
            "TORCHELASTIC_RUN_ID": spec.rdzv_handler.get_run_id(),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")
        if self._virtual_local_rank:
            visible = [d.strip() for d in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
            device = visible[worker.local_rank] if visible else str(worker.local_rank)
            environ |= {"LOCAL_RANK": "0", "CUDA_VISIBLE_DEVICES": device}
        label = f"{self._name} r{worker.global_rank}"
        return RankSpec(worker.global_rank, worker.local_rank, label, environ)
