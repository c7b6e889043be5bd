"""What this pod runs, by its topology and the command line; waited for, started and described."""

from __future__ import annotations

import logging
import shlex
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trainkit import config
from trainkit.errors import UsageError
from trainkit.launch.entry import Entry, names_torch, names_xgboost
from trainkit.launch.options import LaunchOptions
from trainkit.launch.plan import ProgramPlan, RankPlan, plan_pod
from trainkit.launch.prerequisites import await_all, await_name, check_things
from trainkit.launch.static import is_led_by_tracker, needs_no_agent, plan_static
from trainkit.resources.gpus import visible_gpu_count
from trainkit.topology import Topology
from trainkit.waiting import Deadline

if TYPE_CHECKING:
    from trainkit.launch.mpi import Mpirun

__all__ = ["PodJob"]

log = logging.getLogger("trainkit")


@dataclass(frozen=True, slots=True, kw_only=True)
class PodJob:
    """What this pod runs."""

    topology: Topology
    options: LaunchOptions
    plan: RankPlan | ProgramPlan
    entry: Entry
    forked: bool = False
    mpirun: Mpirun | None = None

    @classmethod
    def of(cls, topology: Topology, options: LaunchOptions, environ: Mapping[str, str]) -> PodJob:
        """Find out what a pod runs.

        Args:
            topology: of this process.
            options: the command line.
            environ: of what is to be started.

        Raises:
            TrainkitError: it cannot be run here; the message says why.
        """
        check_things([*config.settings().wait_for, *options.wait_for])
        program: ProgramPlan
        mpirun = None
        if topology.runs_mpirun:
            from trainkit.launch.mpi import plan_mpirun

            command = options.entry.argv()
            mpirun = plan_mpirun(topology, command, environ, num_ranks=options.num_ranks)
            topology = replace(topology, notes=())  # of what a plain mpirun would get wrong
            program = mpirun.program()
        elif topology.awaits_mpirun:
            from trainkit.launch.sshd import plan_sshd

            program = plan_sshd(environ)
        else:
            torch = names_torch(options.entry)
            topology = _with_gpus(topology, config.environ()) if torch else topology
            return cls(
                topology=topology,
                options=options,
                plan=_plan(topology, options, torch),
                entry=options.entry,
                forked=_forks(options, torch),
            )
        entry = Entry.of(program.command[0], program.command[1:], python=False)
        return cls(topology=topology, options=options, plan=program, entry=entry, mpirun=mpirun)

    def describe(self) -> Iterator[str]:
        """What would be run, and with which variables, line by line."""
        plan, command = self.plan, shlex.join(self.plan.command)
        yield self.topology.summary()
        if isinstance(plan, ProgramPlan):
            number = "one process" if len(plan.environs) == 1 else f"{len(plan.environs)} processes"
            yield f"runs {number} ({plan.why}): {command}"
            for environ in plan.environs:
                yield from (f"{name}={value}" for name, value in environ.items())
            for path, text in self.mpirun.files.items() if self.mpirun is not None else ():
                yield f"writes {path}:"
                yield from (f"  {line}" for line in text.splitlines())
            return
        nodes = f"{plan.min_nodes}"
        if plan.max_nodes != plan.min_nodes:
            nodes += f" to {plan.max_nodes}"
        how = "forked from a process that has imported torch" if self.forked else "each by itself"
        yield f"starts {plan.nproc} rank(s) of this node, {how}: {command}"
        yield f"meets {nodes} node(s) by {plan.backend} at {plan.endpoint}"
        yield f"restarts in place: {plan.max_restarts}"
        yield from (f"{name}={value}" for name, value in _variables(plan).items())

    def run(self, environ: Mapping[str, str], settings: config.Settings) -> int:
        """Run it to its end, and return the exit code of this process.

        Args:
            environ: of what is started, but for what is added for each.
            settings: of this process.

        Raises:
            TrainkitError: it could not be started, or what it needs did not come.
        """
        from trainkit.launch.running import Launch

        plan, options = self.plan, self.options
        count = plan.nproc if isinstance(plan, RankPlan) else len(plan.environs)
        prefix = count > 1 if options.prefix is None else options.prefix
        launch = Launch(
            entry=self.entry,
            name=self.topology.label(),
            environ=environ,
            output=replace(options.output, prefix=prefix),
            forked=self.forked,
            grace_period=settings.grace_period,
            timeout=settings.timeout,
            notices=settings.preemption_signals,
            hang_timeout=settings.hang_timeout,
        )
        restarts = plan.max_restarts if isinstance(plan, RankPlan) else options.max_restarts or 0
        nursery = launch.start(restarts=restarts > 0)
        if isinstance(plan, RankPlan):
            return launch.run_ranks(plan, nursery, options.local_addr, self._await_needs)
        if self.mpirun is None:
            return launch.run_programs(plan, nursery, restarts, self._await_needs)
        from trainkit.launch.mpi import remove_files

        for folder in self.mpirun.folders:
            nursery.remove_at_the_end(folder)  # a copy of the key is in it
        try:
            return launch.run_programs(plan, nursery, restarts, self._await_needs)
        finally:
            remove_files(self.mpirun)

    def _await_needs(self) -> None:
        """Wait for everything that this pod's processes need."""
        settings = config.settings()
        deadline = Deadline(settings.timeout)
        await_all([*settings.wait_for, *self.options.wait_for], deadline=deadline)
        master = self.topology.master_addr
        if is_led_by_tracker(self.topology) and self.topology.node_rank and master is not None:
            # Its name only: XGBoost itself is patient with a tracker that comes up late.
            await_name(master, deadline=deadline)
        if self.mpirun is not None:
            from trainkit.launch.mpi import await_hosts

            await_hosts(self.mpirun, deadline)
            log.info("all %d hosts of the MPI job are reached", len(self.mpirun.hosts))


def _plan(topology: Topology, options: LaunchOptions, torch: bool) -> RankPlan | ProgramPlan:
    command, environ = options.entry.argv(), config.environ()
    xgboost = not torch and names_xgboost(options.entry)
    if topology.starts_ranks and needs_no_agent(topology, torch=torch, xgboost=xgboost):
        return plan_static(topology, command, environ, gpus=visible_gpu_count())
    plan = plan_pod(topology, command, environ, uuid.uuid4().hex, torch=torch)
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


def _variables(plan: RankPlan) -> dict[str, str]:
    return {
        "LOCAL_WORLD_SIZE": str(plan.nproc),
        "GROUP_RANK": "by the rendezvous" if plan.node_rank is None else str(plan.node_rank),
        "ROLE_NAME": plan.role,
        "TORCHELASTIC_RUN_ID": plan.run_id,
        "TORCHELASTIC_MAX_RESTARTS": str(plan.max_restarts),
    }
