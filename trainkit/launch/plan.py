"""What a process that stands for several ranks will start: a pure function of the topology."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainkit.errors import TopologyError
from trainkit.topology import Topology

__all__ = ["RankPlan", "plan_ranks"]


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
        backend, endpoint, run_id_of_job = "c10d", "localhost:0", run_id
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
