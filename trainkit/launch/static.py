"""Ranks of this pod without torch's agent: where there is no torch, or XGBoost's tracker leads."""

import socket
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from trainkit.errors import TopologyError
from trainkit.launch.plan import ProgramPlan
from trainkit.topology import Topology

__all__ = ["is_led_by_tracker", "needs_no_agent", "plan_static"]


def is_led_by_tracker(topology: Topology) -> bool:
    """Whether ranks meet at XGBoost's tracker, as in a TrainJob with its policy.

    The master's address is the tracker's there, which rank 0's program starts: a rendezvous of
    ours would take its port.
    """
    return topology.sources.get("master_addr") == "DMLC_TRACKER_URI"


def needs_no_agent(topology: Topology, *, torch: bool, xgboost: bool) -> bool:
    """Whether the ranks of this pod are started without torch's agent.

    Args:
        topology: of a process with ``starts_ranks``.
        torch: whether the program names torch.
        xgboost: whether it names XGBoost: its ranks then have no use for torch's store, and
            need not import torch to reach it. Only an elastic job still needs the agent.
    """
    if is_led_by_tracker(topology) or not (torch or find_spec("torch")):
        return True
    return xgboost and not torch and topology.rank is not None


def plan_static(
    topology: Topology, command: Sequence[str], environ: Mapping[str, str], *, gpus: int
) -> ProgramPlan:
    """Plan the local ranks of ``topology`` as processes that find each other themselves.

    Args:
        topology: of a process with ``starts_ranks``.
        command: what each rank runs.
        environ: of this process.
        gpus: devices that this process may use.

    Raises:
        TopologyError: the number of nodes or this one's index is not known.
    """
    if topology.rank is None or topology.world_size is None:
        raise TopologyError(
            f"{topology.summary()}: an elastic job needs torch's agent, and torch is not "
            f'installed. Install "trainkit[torch]", or give a fixed --nnodes.'
        )
    count = topology.procs_to_launch
    tracked = is_led_by_tracker(topology)
    variables = _tracked if tracked else _numbered
    address = _address(topology)
    environs = []
    for local_rank in range(count):
        additions = variables(topology, local_rank, address)
        if tracked and gpus >= count > 1:
            # XGBoost takes device="cuda" without a number: the first that it sees.
            additions["CUDA_VISIBLE_DEVICES"] = _device(environ, local_rank)
        environs.append(additions)
    meeting = "XGBoost's tracker" if tracked else "no agent"
    last = topology.rank + count - 1
    why = f"ranks {topology.rank}–{last} of {topology.world_size}, by {meeting}"
    return ProgramPlan(
        command=tuple(command), why=why, rank=topology.rank, environs=tuple(environs)
    )


def _tracked(topology: Topology, local_rank: int, address: tuple[str, int]) -> dict[str, str]:
    """One task each, and one process a task: DMLC_TASK_ID counts nodes before."""
    del address  # the tracker's variables are there
    task = (topology.rank or 0) + local_rank
    return {"DMLC_TASK_ID": str(task), "PET_NPROC_PER_NODE": "1"}


def _numbered(topology: Topology, local_rank: int, address: tuple[str, int]) -> dict[str, str]:
    """What torchrun's workers see."""
    rank = str((topology.rank or 0) + local_rank)
    return {
        "RANK": rank,
        "ROLE_RANK": rank,
        "ROLE_NAME": "default",
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(topology.procs_to_launch),
        "WORLD_SIZE": str(topology.world_size),
        "ROLE_WORLD_SIZE": str(topology.world_size),
        "GROUP_RANK": str(topology.node_rank or 0),
        "GROUP_WORLD_SIZE": str(topology.num_nodes or 1),
        "MASTER_ADDR": address[0],
        "MASTER_PORT": str(address[1]),
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "False",
    }


def _address(topology: Topology) -> tuple[str, int]:
    """Where rank 0 listens; a free port where the job is of this pod alone."""
    if (topology.num_nodes or 1) > 1:
        if topology.master_addr is None:
            raise TopologyError(
                f"{topology.summary()}: nothing says where the nodes meet. Set PET_MASTER_ADDR."
            )
        return topology.master_addr, topology.master_port or 29500
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return "127.0.0.1", int(probe.getsockname()[1])


def _device(environ: Mapping[str, str], local_rank: int) -> str:
    visible = [part.strip() for part in environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return visible[local_rank] if any(visible) else str(local_rank)
