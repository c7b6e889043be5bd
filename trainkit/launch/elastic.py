"""Starting the ranks of this pod with torch's elastic agent, and keeping their exit code.

The agent is torchrun's: rendezvous, restarts and the variables that a rank sees are its own.
Ours is the plan before it and the report after it, because torchrun turns every failure of a
rank into exit code 1, which operators read as permanent.
"""

import contextlib
import json
import logging
import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import Any

from trainkit import config
from trainkit.coordination.network import await_address
from trainkit.errors import DeadlineError, EnvironmentFaultError, ExitCode, Preempted
from trainkit.launch.plan import RankPlan
from trainkit.lifecycle import FailureRecord
from trainkit.resources.cpus import cpu_limit
from trainkit.waiting import Deadline

__all__ = ["own_command", "start_ranks"]

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""What torch's agent passes on to its ranks by default."""

_ENDS_ON_REQUEST = (ExitCode.DONE, ExitCode.INTERRUPTED, ExitCode.PREEMPTED)


def start_ranks(
    plan: RankPlan, *, grace_period: float, timeout: float, notices: Sequence[signal.Signals] = ()
) -> int:
    """Start the ranks of ``plan``, wait for them, and return the exit code for this process.

    Args:
        plan: what to start.
        grace_period: seconds that ranks get to end after SIGTERM.
        timeout: seconds to wait for the other pods.
        notices: signals that announce a pre-emption, passed on to the ranks.

    Raises:
        DeadlineError: the other pods did not come; the message names where they meet.
        Preempted: a notice came before any rank was started.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import launch_agent

    handled = tuple(dict.fromkeys((*_SIGNALS, *notices)))
    _share_cpus(plan.nproc)
    with (
        tempfile.TemporaryDirectory(prefix="trainkit-ranks-") as folder,
        _ending_at_once(handled),
        _rendezvous_errors(plan, timeout),
    ):
        if plan.backend == "static" and plan.node_rank:
            host, _, port = plan.endpoint.rpartition(":")
            who = f"node {plan.node_rank}"
            await_address(host, int(port), who=who, deadline=Deadline(timeout))
        agent_config = _agent_config(plan, folder, grace_period, timeout, handled)
        try:
            launch_agent(agent_config, plan.command[0], list(plan.command[1:]))
        except ChildFailedError as failed:
            return _report(failed.failures)
        except SignalException as stopped:
            return _after_signal(Path(folder), signal.Signals(int(stopped.sigval)), notices)
    return ExitCode.DONE


@contextlib.contextmanager
def _ending_at_once(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Until the agent handles signals itself, with its first ranks: end where one comes.

    It may wait long for other pods before that, and as PID 1 a process without a handler would
    not even be ended by SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        name = signal.Signals(number).name
        raise Preempted(f"{name} while waiting for the other pods; no rank was started")

    previous = {number: signal.signal(number, end) for number in signals}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def _rendezvous_errors(plan: RankPlan, timeout: float) -> Iterator[None]:
    """Turn the agent's errors about other pods into one message, and a code that is retried."""
    import torch.distributed as dist
    from torch.distributed.elastic.rendezvous import RendezvousError

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


def _after_signal(folder: Path, number: signal.Signals, notices: Sequence[signal.Signals]) -> int:
    """The exit code after ranks were ended on request: theirs, where one of them failed."""
    for path in sorted(folder.rglob("error.json")):
        try:
            record = FailureRecord.from_error_file(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
        if record is not None and record.exit_code not in _ENDS_ON_REQUEST:
            print(
                f"trainkit: rank {record.rank} failed while it was to stop "
                f"({record.error}: {record.message})",
                file=sys.stderr,
            )
            return record.exit_code
    return ExitCode.PREEMPTED if number in notices else 128 + number


def _share_cpus(nproc: int) -> None:
    """Divide the pod's CPUs over its ranks, where the user has not set a number of threads.

    torch starts one thread a core of the host in every rank, and torchrun makes it 1.
    """
    if config.environ().get("OMP_NUM_THREADS"):
        return
    limit, _ = cpu_limit()
    config.set_environ({"OMP_NUM_THREADS": str(max(1, int(limit) // nproc))})


def _agent_config(
    plan: RankPlan,
    folder: str,
    grace_period: float,
    timeout: float,
    handled: Sequence[signal.Signals],
) -> Any:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    seconds = max(1, math.ceil(timeout))
    # Each backend has a name of its own for the same thing.
    names = ("timeout", "join_timeout", "read_timeout")
    options: dict[str, Any] = {**dict.fromkeys(names, seconds), **plan.options}
    if plan.backend == "static":
        options["rank"] = plan.node_rank
    known = {spec.name for spec in fields(LaunchConfig)}
    extra: dict[str, Any] = {}
    if "shutdown_timeout" in known:
        extra["shutdown_timeout"] = int(grace_period)
    if "signals_to_handle" in known:
        extra["signals_to_handle"] = ",".join(number.name for number in handled)
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
    """The command line of this very process, to be run again by each rank.

    Raises:
        EnvironmentFaultError: it names no program (standard input, a notebook), so running it
            again would not train.
    """
    arguments = list(sys.orig_argv)
    main_module = sys.modules.get("__main__")
    program = getattr(main_module, "__file__", None)
    inline = "-c" in arguments[1:] and "--multiprocessing-fork" not in arguments
    if (program is None or not Path(program).exists()) and not inline:
        raise EnvironmentFaultError(
            f"this process stands for several ranks and would start its own command once for "
            f"each, and {' '.join(arguments)!r} names no script (standard input, or a notebook). "
            f"Put the training into a file, start it with torchrun, or pass num_procs=1."
        )
    arguments[0] = sys.executable or os.path.realpath("/proc/self/exe")
    return arguments
