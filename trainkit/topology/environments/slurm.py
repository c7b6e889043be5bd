"""A task of a Slurm job step, started by srun."""

from trainkit.errors import TopologyError
from trainkit.topology.hosts import expand_hostlist, parse_tasks_per_node
from trainkit.topology.meeting import Master, master
from trainkit.topology.nodes import gpu_notes
from trainkit.topology.parsing import (
    integer,
    malformed,
    missing,
    port,
    require_below,
    required_integer,
    seen,
    shown,
)
from trainkit.topology.sight import Sight
from trainkit.topology.topology import Topology

__all__ = ["Slurm"]

# Below the ports that Linux hands out by itself (32768 and up), above the usual servers.
_FIRST_PORT = 15_000
_PORTS = 14_000


class Slurm:
    """A rank is only a process *with* SLURM_STEP_ID, and its world is the step's.

    The batch script itself, and a shell of salloc, have SLURM_NTASKS and even SLURM_PROCID=0
    as well: they are one process each, and whoever believes otherwise waits for ever.
    """

    name = "slurm"

    def detect(self, sight: Sight) -> bool:
        return sight.get("SLURM_STEP_ID") is not None and sight.get("SLURM_PROCID") is not None

    def topology(self, sight: Sight) -> Topology:
        step = required_integer(sight, "SLURM_STEP_ID", "SLURM_JOB_ID", "SLURM_PROCID")
        rank = required_integer(sight, "SLURM_PROCID", "SLURM_STEP_ID")
        size = required_integer(sight, "SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID", least=1)
        require_below(sight, "SLURM_PROCID", rank, "SLURM_STEP_NUM_TASKS", size)
        node = required_integer(sight, "SLURM_NODEID", "SLURM_STEP_ID")
        num_nodes = required_integer(sight, "SLURM_STEP_NUM_NODES", "SLURM_STEP_ID", least=1)
        require_below(sight, "SLURM_NODEID", node, "SLURM_STEP_NUM_NODES", num_nodes)
        local_size = _tasks_of_node(sight, node, num_nodes, size)
        local_rank = required_integer(sight, "SLURM_LOCALID", "SLURM_STEP_ID")
        require_below(sight, "SLURM_LOCALID", local_rank, "SLURM_STEP_TASKS_PER_NODE", local_size)
        meeting = _master(sight, step, size)
        return Topology(
            platform=self.name,
            rank=rank,
            world_size=size,
            local_rank=local_rank,
            local_world_size=local_size,
            node_rank=node,
            num_nodes=num_nodes,
            master_addr=meeting.host,
            master_port=meeting.port,
            restart_count=integer(sight, "SLURM_RESTART_COUNT") or 0,
            notes=gpu_notes(sight, local_size),
            unused=_leftovers(sight, size),
            sources={
                "rank": "SLURM_PROCID",
                "world_size": "SLURM_STEP_NUM_TASKS",
                "local_rank": "SLURM_LOCALID",
                "local_world_size": "SLURM_STEP_TASKS_PER_NODE",
                "node_rank": "SLURM_NODEID",
                "num_nodes": "SLURM_STEP_NUM_NODES",
                "procs_to_launch": "SLURM_STEP_ID",
                "master_addr": meeting.host_source,
                "master_port": meeting.port_source,
                "restart_count": "SLURM_RESTART_COUNT",
            },
        )


def _tasks_of_node(sight: Sight, node: int, num_nodes: int, size: int) -> int:
    name = "SLURM_STEP_TASKS_PER_NODE"
    text = sight.get(name)
    if text is None:
        if num_nodes == 1:
            return size
        raise missing(sight, name, "SLURM_STEP_ID", "SLURM_STEP_NUM_NODES")
    try:
        tasks = parse_tasks_per_node(text)
    except ValueError:
        raise malformed(sight, name, "counts such as 2(x3),1") from None
    if len(tasks) != num_nodes or sum(tasks) != size:
        raise TopologyError(
            f"{shown(sight, name)} speaks of {sum(tasks)} tasks on {len(tasks)} nodes, against "
            f"{shown(sight, 'SLURM_STEP_NUM_TASKS')} and {shown(sight, 'SLURM_STEP_NUM_NODES')}. "
            f"Probably a script changed one of them or passed on those of another step. "
            f"Start the program with srun directly."
        )
    return tasks[node]


def _master(sight: Sight, step: int, size: int) -> Master:
    """The user's MASTER_ADDR and MASTER_PORT; else the step's first host, and its own port."""
    chosen = master(sight, default_port=None)
    user_port = port(sight, "MASTER_PORT")
    host, host_source = chosen.host, chosen.host_source
    if host is None:
        host, host_source = _first_host(sight, size), "SLURM_STEP_NODELIST"
    if user_port is not None:
        return Master(host, user_port, host_source, "MASTER_PORT")
    # The same in all tasks of the step, and another one in the next step or job.
    job = integer(sight, "SLURM_JOB_ID") or 0
    derived = _FIRST_PORT + (job * 31 + step) % _PORTS
    return Master(host, derived, host_source, "SLURM_JOB_ID, SLURM_STEP_ID")


def _first_host(sight: Sight, size: int) -> str | None:
    text = sight.get("SLURM_STEP_NODELIST")
    if text is None:
        if size == 1:
            return None
        raise missing(sight, "SLURM_STEP_NODELIST", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS")
    try:
        return next(iter(expand_hostlist(text)))
    except ValueError:
        raise malformed(sight, "SLURM_STEP_NODELIST", "hosts such as n[01-03,07]") from None


def _leftovers(sight: Sight, size: int) -> tuple[str, ...]:
    unused = []
    if integer(sight, "SLURM_NTASKS") not in (None, size):
        unused.append(f"{shown(sight, 'SLURM_NTASKS')}: of the job, and not of this step.")
    other = seen(sight, "RANK", "WORLD_SIZE", "LOCAL_RANK", "PMI_RANK", "PMI_SIZE")
    if other:
        unused.append(f"{', '.join(other)}: srun says who this task is.")
    return tuple(unused)
