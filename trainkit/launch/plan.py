"""What a process that stands for several ranks will start: a pure function of the topology."""

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from trainkit.errors import TopologyError
from trainkit.topology import Topology

__all__ = ["ProgramPlan", "RankPlan", "plan_pod", "plan_ranks"]

_INNER = ("torchelastic", "mpi", "slurm")
"""Launchers whose processes are ranks already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """Ranks of this pod, and where their launchers meet."""

    command: tuple[str, ...]
    """What each rank runs."""
    nproc: int
    """Ranks to start here."""
    min_nodes: int
    max_nodes: int
    node_rank: int | None
    """Index of this pod; None lets the rendezvous decide."""
    backend: str
    """Rendezvous of torch's elastic agent: ``static``, ``c10d``, ``etcd``, ``etcd-v2``."""
    endpoint: str
    """``host:port`` of the rendezvous."""
    run_id: str
    max_restarts: int = 0
    options: Mapping[str, str] = field(default_factory=dict)
    """Further rendezvous options, as in PET_RDZV_CONF."""
    role: str = "default"
    """ROLE_NAME of the ranks."""
    monitor_interval: float = 0.1
    """Seconds between two looks for new nodes."""
    virtual_local_rank: bool = False
    """Whether each rank sees one GPU, and LOCAL_RANK is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramPlan:
    """Processes without an agent of torch: a rank that exists already, a server, mpirun."""

    command: tuple[str, ...]
    why: str
    """What they are, in a few words."""
    rank: int | None = None
    """Rank of the first in the job; None if they are no ranks."""
    label: str = ""
    """What it is called in reports; by default as the pod."""
    environs: tuple[Mapping[str, str], ...] = ({},)
    """For each process, additions to this one's environment."""
    stop_signal: signal.Signals | None = None
    """What tells them of a notice to stop, where the notice itself would not do."""
    reports: bool = True
    """Whether they run the job's program, which may leave a record of its failure."""
    lost_host: Callable[[int, Sequence[str]], str] | None = None
    """What the exit code and the lines on standard error tell of a host that was lost; empty if
    none was. For programs that do not tell it by the code alone."""


def plan_pod(
    topology: Topology,
    command: Sequence[str],
    environ: Mapping[str, str],
    run_id: str,
    *,
    torch: bool,
) -> RankPlan | ProgramPlan:
    """Plan what this pod runs, where that is not ``mpirun`` or ``sshd``.

    A pod of one rank starts it as a rank of torch's agent too, which restarts it in place and
    meets the other pods; not where a launcher around this one has made the rank, and not for
    programs without torch.

    Args:
        topology: of this pod.
        command: what a rank runs.
        environ: where to read PET_*.
        run_id: of a rendezvous within this pod alone.
        torch: whether the program imports torch.

    Raises:
        TopologyError: a PET_* value cannot be used.
    """
    if topology.starts_ranks:
        return plan_ranks(topology, command, environ, run_id)
    trains = topology.rank is not None and topology.cluster is None
    if torch and trains and topology.platform not in _INNER:
        one = replace(topology, procs_to_launch=1)
        return plan_ranks(one, command, environ, run_id)
    rank = "" if topology.rank is None else f", rank {topology.rank} of {topology.world_size}"
    index = "" if topology.role_index is None else f" {topology.role_index}"
    return ProgramPlan(
        command=tuple(command), why=f"{topology.role}{index}{rank}", rank=topology.rank
    )


def plan_ranks(
    topology: Topology, command: Sequence[str], environ: Mapping[str, str], run_id: str
) -> RankPlan:
    """Plan the local ranks of ``topology``.

    Args:
        topology: of a process with ``starts_ranks``.
        command: what each rank runs.
        environ: where to read PET_MAX_RESTARTS and the PET_RDZV_* of an elastic job.
        run_id: of a rendezvous within this pod alone.

    Raises:
        TopologyError: a PET_* value cannot be used.
    """
    run_id_of_job = environ.get("PET_RDZV_ID") or "none"
    min_nodes = max_nodes = topology.num_nodes or 1
    node_rank = topology.node_rank
    backend, options = "static", {}
    if topology.is_elastic or topology.num_nodes is None:
        min_nodes = topology.min_nodes or 1
        max_nodes = topology.max_nodes or min_nodes
        backend, node_rank = environ.get("PET_RDZV_BACKEND") or "c10d", None
        options = _options(environ.get("PET_RDZV_CONF", ""))
        endpoint = _endpoint(topology)
    elif topology.num_nodes == 1:
        # A private meeting on a free port: two jobs on one host cannot collide.
        backend, endpoint, run_id_of_job = "static", "127.0.0.1:0", run_id
        node_rank = 0
    else:
        # Static also where the job asks for c10d: that numbers nodes as they come, and the
        # pod's own index would mean nothing in its logs.
        backend = "c10d" if node_rank is None else "static"
        endpoint = _endpoint(topology)
    return RankPlan(
        command=tuple(command),
        nproc=topology.procs_to_launch,
        min_nodes=min_nodes,
        max_nodes=max_nodes,
        node_rank=node_rank,
        backend=backend,
        endpoint=endpoint,
        run_id=run_id_of_job,
        max_restarts=_whole_number(environ, "PET_MAX_RESTARTS", 0),
        options=options,
    )


def _endpoint(topology: Topology) -> str:
    if topology.master_addr is None:
        raise TopologyError(
            f"{topology.num_nodes or topology.max_nodes} pods are to train together, and nothing "
            f"says where they meet. Set PET_MASTER_ADDR (static) or PET_RDZV_ENDPOINT (elastic)."
        )
    return f"{topology.master_addr}:{topology.master_port or 29500}"


def _options(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    bad = [key for key, equals, _ in pairs if not equals]
    if bad:
        raise TopologyError(
            f"PET_RDZV_CONF={text!r}: expected key=value,key=value; {bad[0]!r} has no value"
        )
    return {key.strip(): value.strip() for key, _, value in pairs}


def _whole_number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal():
        raise TopologyError(f"{name}={text!r}: expected a whole number, 0 or more")
    return int(text)
