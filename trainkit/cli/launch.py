"""``trainkit launch``: the one command for every kind of job."""

import argparse
import shlex
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace

from trainkit import config
from trainkit.cli.entry import HelpFormatter
from trainkit.errors import EnvironmentFaultError, UsageError
from trainkit.launch.announcing import log_topology
from trainkit.launch.entry import names_torch
from trainkit.launch.options import LaunchOptions, parse
from trainkit.launch.plan import ProgramPlan, RankPlan, plan_pod
from trainkit.topology import Topology, detect

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Find out what this pod is for, wait for what that needs, and run it to its end.

    Raises:
        TrainkitError: with the exit code of this process.
    """
    environ = dict(config.environ())
    options = parse(argv, environ, _parser())
    config.set_environ(options.pet)
    if options.grace_period is not None:
        config.set_environ({"TRAINKIT_GRACE_PERIOD": f"{options.grace_period:g}"})
        environ["TRAINKIT_GRACE_PERIOD"] = f"{options.grace_period:g}"
    settings = config.settings()
    topology = _with_gpus(detect(), config.environ())
    _refuse_mpi(topology)
    torch = names_torch(options.entry)
    plan = _plan(topology, options, torch)
    forked = _forks(options, torch)
    if options.dry_run:
        for line in _shown(topology, plan, forked=forked):
            print(line)
        return 0
    log_topology(topology, by_all=True)
    return _run(topology, plan, options, environ, settings, forked=forked)


def _refuse_mpi(topology: Topology) -> None:
    """Pods of an MPI job: their ranks must not be taken for this one process."""
    if topology.runs_mpirun:
        raise EnvironmentFaultError(
            f"this is an MPI launcher pod, and `trainkit launch` does not start mpirun yet. Make "
            f"`mpirun -n {topology.world_size} python train.py` the pod's command; with Open MPI 5 "
            f"give it the hostfile (--hostfile), or all ranks run in this pod."
        )
    if topology.awaits_mpirun:
        raise EnvironmentFaultError(
            "this is an MPI worker pod, in which mpirun starts the ranks. Make sshd its command."
        )


def _run(
    topology: Topology,
    plan: RankPlan | ProgramPlan,
    options: LaunchOptions,
    environ: Mapping[str, str],
    settings: config.Settings,
    *,
    forked: bool,
) -> int:
    from trainkit.launch.running import Launch

    several = isinstance(plan, RankPlan) and plan.nproc > 1
    prefix = several if options.prefix is None else options.prefix
    launch = Launch(
        entry=options.entry,
        name=topology.label(),
        environ=environ,
        output=replace(options.output, prefix=prefix),
        forked=forked,
        grace_period=settings.grace_period,
        timeout=settings.timeout,
        notices=settings.preemption_signals,
        hang_timeout=settings.hang_timeout,
    )
    nursery = launch.start()
    if isinstance(plan, RankPlan):
        return launch.run_ranks(plan, nursery, options.local_addr)
    return launch.run_program(plan, nursery, options.max_restarts or 0)


def _plan(topology: Topology, options: LaunchOptions, torch: bool) -> RankPlan | ProgramPlan:
    plan = plan_pod(topology, options.entry.argv(), config.environ(), uuid.uuid4().hex, torch=torch)
    if isinstance(plan, ProgramPlan):
        return plan
    given = options.max_restarts
    return replace(
        plan,
        max_restarts=plan.max_restarts if given is None else given,
        role=options.role,
        monitor_interval=options.monitor_interval,
        virtual_local_rank=options.virtual_local_rank,
    )


def _with_gpus(topology: Topology, environ: Mapping[str, str]) -> Topology:
    """A bare host runs one rank a visible GPU, as a bare ``python`` with ``run`` does."""
    if topology.platform != "local" or topology.starts_ranks:
        return topology
    if environ.get("PET_NPROC_PER_NODE"):
        return topology
    from trainkit.resources.gpus import visible_gpu_count

    gpus = 0 if config.settings().device == "cpu" else visible_gpu_count()
    if gpus <= 1:
        return topology
    return replace(topology, world_size=gpus, local_world_size=gpus, procs_to_launch=gpus)


def _forks(options: LaunchOptions, torch: bool) -> bool:
    if options.entry.kind == "program":
        if options.preload:
            raise UsageError("--preload and --no-python exclude each other")
        return False
    return torch if options.preload is None else options.preload


def _shown(topology: Topology, plan: RankPlan | ProgramPlan, *, forked: bool) -> list[str]:
    lines = [topology.summary()]
    command = shlex.join(plan.command)
    if isinstance(plan, ProgramPlan):
        return [*lines, f"runs one process ({plan.why}): {command}"]
    nodes = f"{plan.min_nodes}"
    if plan.max_nodes != plan.min_nodes:
        nodes += f" to {plan.max_nodes}"
    how = "forked from a process that has imported torch" if forked else "each by itself"
    return [
        *lines,
        f"starts {plan.nproc} rank(s) of this node, {how}: {command}",
        f"meets {nodes} node(s) by {plan.backend} at {plan.endpoint}",
        f"restarts in place: {plan.max_restarts}",
        *(f"{name}={value}" for name, value in _variables(plan).items()),
    ]


def _variables(plan: RankPlan) -> dict[str, str]:
    return {
        "LOCAL_WORLD_SIZE": str(plan.nproc),
        "GROUP_RANK": "by the rendezvous" if plan.node_rank is None else str(plan.node_rank),
        "ROLE_NAME": plan.role,
        "TORCHELASTIC_RUN_ID": plan.run_id,
        "TORCHELASTIC_MAX_RESTARTS": str(plan.max_restarts),
    }


def _parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="trainkit launch",
        usage="trainkit launch [options] (script.py | -m module) args...",
        description="Run what this pod, or host, is for: its ranks, or one process of a role.\n"
        "What torchrun's flags and PET_* variables say means the same here.",
        formatter_class=HelpFormatter,
    )
