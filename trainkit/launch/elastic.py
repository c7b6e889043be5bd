"""Starting the ranks of this pod with torch's elastic agent, and keeping their exit code.

The agent is torchrun's: rendezvous, restarts and the variables that a rank sees are its own.
Ours is the plan before it and the report after it, because torchrun turns every failure of a
rank into exit code 1, which operators read as permanent.
"""

import contextlib
import logging
import os
import sys
import tempfile
from dataclasses import fields
from typing import Any

from trainkit import config
from trainkit.coordination.network import await_address
from trainkit.errors import ExitCode
from trainkit.launch.plan import RankPlan
from trainkit.lifecycle import FailureRecord
from trainkit.resources.cpus import cpu_limit
from trainkit.waiting import Deadline

__all__ = ["own_command", "start_ranks"]

log = logging.getLogger(__name__)


def start_ranks(plan: RankPlan, *, grace_period: float, timeout: float) -> int:
    """Start the ranks of ``plan``, wait for them, and return the exit code for this process.

    Args:
        plan: what to start.
        grace_period: seconds that ranks get to end after SIGTERM.
        timeout: seconds to wait for the other pods.

    Raises:
        DeadlineError: the pod of node rank 0 cannot be reached.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import launch_agent

    if plan.backend == "static" and plan.node_rank:
        host, _, port = plan.endpoint.rpartition(":")
        who = f"node {plan.node_rank}"
        await_address(host, int(port), who=who, deadline=Deadline(timeout))
    _share_cpus(plan.nproc)
    with tempfile.TemporaryDirectory(prefix="trainkit-ranks-") as folder:
        agent_config = _agent_config(plan, folder, grace_period, timeout)
        try:
            launch_agent(agent_config, plan.command[0], list(plan.command[1:]))
        except ChildFailedError as failed:
            return _report(failed.failures)
        except SignalException as stopped:
            return 128 + int(stopped.sigval)
    return ExitCode.DONE


def _share_cpus(nproc: int) -> None:
    """Divide the pod's CPUs over its ranks, where the user has not set a number of threads.

    torch starts one thread a core of the host in every rank, and torchrun makes it 1.
    """
    if config.environ().get("OMP_NUM_THREADS"):
        return
    limit, _ = cpu_limit()
    config.set_environ({"OMP_NUM_THREADS": str(max(1, int(limit) // nproc))})


def _agent_config(plan: RankPlan, folder: str, grace_period: float, timeout: float) -> Any:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    options: dict[str, Any] = {"timeout": int(timeout), **plan.options}
    if plan.backend == "static":
        options["rank"] = plan.node_rank
    known = {spec.name for spec in fields(LaunchConfig)}
    extra: dict[str, Any] = {}
    if "shutdown_timeout" in known:
        extra["shutdown_timeout"] = int(grace_period)
    return LaunchConfig(
        min_nodes=plan.min_nodes,
        max_nodes=plan.max_nodes,
        nproc_per_node=plan.nproc,
        run_id=plan.run_id,
        rdzv_backend=plan.backend,
        rdzv_endpoint=plan.endpoint,
        rdzv_configs=options,
        max_restarts=plan.max_restarts,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=folder),
        **extra,
    )


def _report(failures: dict[int, Any]) -> int:
    """Name the rank that failed first, and return its exit code as a shell would show it."""
    rank, failure = min(failures.items(), key=lambda item: _order(item[1]))
    record = FailureRecord.from_error_file(failure.error_file_data)
    code = failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    if record is not None:
        what = f"{record.error}: {record.message}"
    elif failure.exitcode < 0:
        what = f"ended by {failure.signal_name()}"
    else:
        what = f"exit code {failure.exitcode}"
    others = sorted(set(failures) - {rank})
    after = f"; after it rank(s) {', '.join(map(str, others))}" if others else ""
    print(f"trainkit: rank {rank} failed first ({what}){after}", file=sys.stderr)
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    return int(code)


def _order(failure: Any) -> tuple[bool, float]:
    """Causes before their consequences: a lost peer or a stop on request is never the first."""
    record = FailureRecord.from_error_file(failure.error_file_data)
    consequence = failure.exitcode in (ExitCode.RETRYABLE, ExitCode.PREEMPTED, -15)
    return consequence, record.time if record is not None else float(failure.timestamp)


def own_command() -> list[str]:
    """The command line of this very process, to be run again by each rank."""
    arguments = list(sys.orig_argv)
    arguments[0] = sys.executable or os.path.realpath("/proc/self/exe")
    return arguments
