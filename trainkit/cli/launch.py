"""``trainkit launch``: the one command for every kind of job."""

from __future__ import annotations

import argparse
import shlex
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trainkit import config
from trainkit.cli.entry import HelpFormatter
from trainkit.errors import UsageError
from trainkit.launch.announcing import log_topology
from trainkit.launch.entry import Entry, names_torch
from trainkit.launch.options import LaunchOptions, parse
from trainkit.launch.plan import ProgramPlan, RankPlan, plan_pod
from trainkit.redaction import redacted
from trainkit.topology import Topology, detect

if TYPE_CHECKING:
    from trainkit.launch.mpi import Mpirun

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
    job = _job(topology, options, settings, environ)
    if options.dry_run:
        for line in _shown(topology, job):
            print(line)
        return 0
    log_topology(topology, by_all=True)
    return _run(topology, job, options, environ, settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What this pod runs."""

    plan: RankPlan | ProgramPlan
    entry: Entry
    forked: bool = False
    mpirun: Mpirun | None = None


def _job(
    topology: Topology,
    options: LaunchOptions,
    settings: config.Settings,
    environ: Mapping[str, str],
) -> _Job:
    program: ProgramPlan
    mpirun = None
    if topology.runs_mpirun:
        from trainkit.launch.mpi import plan_mpirun

        command = options.entry.argv()
        mpirun = plan_mpirun(topology, command, environ, num_ranks=options.num_ranks)
        program = mpirun.program()
    elif topology.awaits_mpirun:
        from trainkit.launch.sshd import plan_sshd

        program = plan_sshd(environ)
    else:
        torch = names_torch(options.entry)
        plan = _plan(topology, options, torch)
        return _Job(plan=plan, entry=options.entry, forked=_forks(options, torch))
    entry = Entry.of(program.command[0], program.command[1:], python=False)
    return _Job(plan=program, entry=entry, mpirun=mpirun)


def _run(
    topology: Topology,
    job: _Job,
    options: LaunchOptions,
    environ: Mapping[str, str],
    settings: config.Settings,
) -> int:
    from trainkit.launch.running import Launch

    plan = job.plan
    count = plan.nproc if isinstance(plan, RankPlan) else len(plan.environs)
    prefix = count > 1 if options.prefix is None else options.prefix
    launch = Launch(
        entry=job.entry,
        name=topology.label(),
        environ=environ,
        output=replace(options.output, prefix=prefix),
        forked=job.forked,
        grace_period=settings.grace_period,
        timeout=settings.timeout,
        notices=settings.preemption_signals,
        hang_timeout=settings.hang_timeout,
    )
    nursery = launch.start()
    if isinstance(plan, RankPlan):
        return launch.run_ranks(plan, nursery, options.local_addr)
    ready = None
    if job.mpirun is not None:
        from trainkit.launch.mpi import hosts_ready

        for folder in job.mpirun.folders:
            nursery.remove_at_the_end(folder)  # a copy of the key is in it
        ready = hosts_ready(job.mpirun, settings.timeout)
    return launch.run_programs(plan, nursery, options.max_restarts or 0, ready)


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


def _shown(topology: Topology, job: _Job) -> list[str]:
    plan, lines = job.plan, [topology.summary()]
    command = redacted(shlex.join(plan.command))
    if isinstance(plan, ProgramPlan):
        number = "one process" if len(plan.environs) == 1 else f"{len(plan.environs)} processes"
        lines.append(f"runs {number} ({plan.why}): {command}")
        for environ in plan.environs:
            lines += [f"{name}={redacted(value)}" for name, value in environ.items()]
        for path, text in job.mpirun.files.items() if job.mpirun is not None else ():
            lines += [f"writes {path}:", *(f"  {line}" for line in text.splitlines())]
        return lines
    nodes = f"{plan.min_nodes}"
    if plan.max_nodes != plan.min_nodes:
        nodes += f" to {plan.max_nodes}"
    how = "forked from a process that has imported torch" if job.forked else "each by itself"
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
