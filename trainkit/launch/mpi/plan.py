"""mpirun's command line, for each implementation: a pure function of what the launcher sees."""

import shlex
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainkit import config
from trainkit.errors import TopologyError
from trainkit.launch.mpi.agent import Agent, agent_of, ssh_config
from trainkit.launch.mpi.forwarding import forwarded, preemption_signals
from trainkit.launch.mpi.lost import lost_host
from trainkit.launch.mpi.placement import short_name
from trainkit.launch.mpi.tools import MpiTools, implementation_of
from trainkit.launch.plan import ProgramPlan
from trainkit.topology import Topology

__all__ = ["Mpirun", "plan_mpirun"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mpirun:
    """What the launcher pod runs, and what must be there before."""

    argv: tuple[str, ...]
    environ: Mapping[str, str]
    """Additions to this process's environment."""
    hosts: tuple[tuple[str, int], ...]
    """(host, slots) in the hostfile's order."""
    world_size: int
    implementation: str
    """``openmpi-5``, ``openmpi-4``, ``intel`` or ``mpich``."""
    stop_signal: signal.Signals = signal.SIGUSR1
    """What tells the ranks through mpirun to save and end. On SIGTERM, Open MPI kills them
    within a second."""
    agent: Agent
    files: Mapping[str, str] = field(default_factory=dict)
    """Path → text, to be written before."""

    @property
    def folders(self) -> set[Path]:
        """Folders of its files, which are its own."""
        return {Path(path).parent for path in self.files}

    def program(self) -> ProgramPlan:
        """mpirun as a process to be run here."""
        return ProgramPlan(
            command=self.argv,
            why=f"mpirun of {self.implementation}: {self.world_size} ranks on "
            f"{len(self.hosts)} hosts",
            label="mpirun",
            environs=(self.environ,),
            stop_signal=self.stop_signal,
            reports=False,  # a rank in this pod would take its files for its own
            lost_host=lost_host if self.implementation.startswith("openmpi") else None,
        )


def plan_mpirun(
    topology: Topology,
    command: Sequence[str],
    environ: Mapping[str, str],
    *,
    num_ranks: int | None = None,
    tools: MpiTools | None = None,
) -> Mpirun:
    """Plan the mpirun of a launcher pod; asks nothing of this machine where ``tools`` is given.

    Args:
        topology: of a process with ``runs_mpirun``.
        command: what each rank runs.
        environ: the launcher pod's.
        num_ranks: ranks to start; one a slot by default.
        tools: the MPI of this pod; looked for by default.

    Raises:
        TopologyError: there are more ranks than slots, or no hosts.
        EnvironmentFaultError: there is no mpirun, or one that trainkit does not know.
        UsageError: a ``TRAINKIT_*`` value cannot be parsed.
    """
    hosts = tuple((host, slots) for host, slots in topology.hosts or ())
    world_size = _world_size(hosts, num_ranks, topology)
    tools = tools or MpiTools.here(environ)
    kind = implementation_of(tools.version)
    settings = config.settings(environ)
    folder = Path(tools.folder or f"/tmp/trainkit-mpi-{tools.uid}")  # noqa: S108
    agent = agent_of(environ, str(folder / "ssh_config"))
    signals = preemption_signals(one.name for one in settings.preemption_signals)
    additions = {"TRAINKIT_PREEMPTION_SIGNALS": signals}
    if not tools.has_mpi4py and not environ.get("MASTER_ADDR"):
        additions["MASTER_ADDR"] = _first_host(hosts, tools)
        additions["MASTER_PORT"] = environ.get("MASTER_PORT") or "29500"
    names = forwarded({**environ, **additions})
    # Only Hydra's ranks must tell their codes; the token keeps others from saying the same.
    token = None if kind.startswith("openmpi") else f"{folder.name}-{world_size}"
    rank = _rank(hosts, world_size, command, token)
    hostfile = str(folder / "hostfile")
    if kind.startswith("openmpi"):
        argv = _open_mpi(kind, tools, agent, hosts, (hostfile, world_size, names))
    else:
        argv = _hydra(kind, tools, agent, (hostfile, world_size, names))
        argv = (sys.executable, "-m", "trainkit.launch.mpi.hydra", str(token), "--", *argv)
        additions |= _hydra_environ(kind, agent)
    files = {hostfile: _hostfile(kind, hosts, tools.hostname)}
    if agent.is_ssh:
        keys = (str(folder / "id"), *(f"~/.ssh/id_{kind}" for kind in ("rsa", "ecdsa", "ed25519")))
        files[agent.config] = ssh_config(keys, settings.ssh_port, tools.uid)
    return Mpirun(
        argv=(*argv, *rank),
        environ=additions,
        hosts=hosts,
        world_size=world_size,
        implementation=kind,
        agent=agent,
        files=files,
    )


def _world_size(hosts: Sequence[tuple[str, int]], num_ranks: int | None, topology: Topology) -> int:
    slots = sum(count for _, count in hosts)
    if not slots:
        raise TopologyError(
            f"{topology.summary()}: no hosts to start ranks on. Expected a hostfile with a line "
            f"such as 'host slots=2' for each."
        )
    if num_ranks is not None and num_ranks > slots:
        counts = " + ".join(str(count) for _, count in hosts[:8]) + (" + …" * (len(hosts) > 8))
        raise TopologyError(
            f"{num_ranks} ranks are asked for, and {len(hosts)} hosts have {counts} = {slots} "
            f"slots. Slots come from slotsPerWorker of an MPIJob or numProcPerNode of a "
            f"TrainJob, hosts from the workers' replicas or numNodes: raise one of them, or ask "
            f"for {slots} ranks."
        )
    return num_ranks or slots


def _first_host(hosts: Sequence[tuple[str, int]], tools: MpiTools) -> str:
    """Where rank 0 will be, as the others can reach it: a launcher's name may resolve nowhere."""
    name = hosts[0][0]
    own = tools.hostname and short_name(name) == short_name(tools.hostname)
    return tools.interface[1] if own and tools.interface is not None else name


def _rank(
    hosts: Sequence[tuple[str, int]], world_size: int, command: Sequence[str], token: str | None
) -> tuple[str, ...]:
    """The rank's command, behind the check that it stands where it should."""
    listed = ",".join(f"{host}={slots}" for host, slots in hosts)
    program = (sys.executable, "-m", "trainkit.launch.mpi.rank")
    report = () if token is None else ("--report", token)
    return (
        *program,
        *("--hosts", listed, "--world-size", str(world_size)),
        *report,
        "--",
        *command,
    )


def _hostfile(kind: str, hosts: Sequence[tuple[str, int]], own: str) -> str:
    """Our own copy: an operator's may be of another MPI's form, or leave out the slots.

    A launcher that is a worker too goes by its host name. Its DNS name may resolve nowhere, and
    all but Open MPI 5 would look for it over the network.
    """
    form = "{} slots={}\n" if kind.startswith("openmpi") else "{}:{}\n"
    named = [(own if own and short_name(host) == short_name(own) else host) for host, _ in hosts]
    return "".join(form.format(name, slots) for name, (_, slots) in zip(named, hosts, strict=True))


def _open_mpi(
    kind: str,
    tools: MpiTools,
    agent: Agent,
    hosts: Sequence[tuple[str, int]],
    job: tuple[str, int, Sequence[str]],
) -> tuple[str, ...]:
    """Version 5 reads neither the hostfile nor the agent that operators put into variables."""
    hostfile, world_size, names = job
    flag, plm = ("--prtemca", "plm_ssh") if kind == "openmpi-5" else ("--mca", "plm_rsh")
    fqdn = "prte_keep_fqdn_hostnames" if kind == "openmpi-5" else "orte_keep_fqdn_hostnames"
    settings = {
        f"{plm}_agent": shlex.join(agent.command),
        # The launcher alone has the hostfile and ssh's configuration, so it starts all daemons.
        f"{plm}_no_tree_spawn": "1",
        # Version 4 gives ssh the name that it keeps, and a short one resolves nowhere; 5 always
        # gives the whole one, and finds the launcher itself in the hostfile by its short name.
        fqdn: "1" if kind == "openmpi-4" or _need_domains(hosts) else "0",
    }
    if agent.arguments:
        settings[f"{plm}_args"] = shlex.join(agent.arguments)
    # One core a rank, Open MPI's default for small jobs, would starve a rank's loaders.
    argv = [tools.mpirun, "--hostfile", hostfile, "-n", str(world_size)]
    argv += ["--map-by", "slot", "--bind-to", "none"]
    if tools.uid == 0:
        argv.append("--allow-run-as-root")
    for name, value in settings.items():
        argv += [flag, name, value]
    for name in names:
        argv += ["-x", name]
    return tuple(argv)


def _need_domains(hosts: Sequence[tuple[str, int]]) -> bool:
    short = Counter(short_name(host) for host in {host for host, _ in hosts})
    return any(count > 1 for count in short.values())


def _hydra(
    kind: str, tools: MpiTools, agent: Agent, job: tuple[str, int, Sequence[str]]
) -> tuple[str, ...]:
    """MPICH and Intel MPI carry all variables to the ranks unless they are given a list."""
    hostfile, world_size, names = job
    beside = Path(tools.mpirun).with_name("mpiexec.hydra")
    program = str(beside) if kind == "intel" else tools.mpirun
    flag = "-bootstrap" if kind == "intel" else "-launcher"
    argv = [program, flag, "ssh" if agent.is_ssh else "rsh"]
    if agent.command[0] != "ssh":
        argv += [f"{flag}-exec", agent.command[0]]
    # -machine holds each host to its slots; with -f, Intel's deals by I_MPI_PERHOST.
    argv += ["-machine" if kind == "intel" else "-f", hostfile]
    if tools.interface is not None:
        name, address = tools.interface
        argv += ["-iface", name] if kind == "intel" else ["-localhost", address]
    if kind == "intel" and "I_MPI_PIN" not in names:
        # Intel's pins each rank to its share of the cores, of which loaders need more.
        argv += ["-genv", "I_MPI_PIN", "0"]
    return (*argv, "-n", str(world_size), "-genvlist", ",".join(names))


def _hydra_environ(kind: str, agent: Agent) -> dict[str, str]:
    arguments = shlex.join([*agent.command[1:], *agent.arguments])
    if kind == "mpich":
        return {"HYDRA_LAUNCHER_EXTRA_ARGS": arguments}
    return {"I_MPI_HYDRA_BOOTSTRAP_EXEC_EXTRA_ARGS": arguments}
