"""A worker that torchrun, or ``python -m torch.distributed.launch``, has started."""

from trainkit.topology.meeting import master
from trainkit.topology.parsing import (
    integer,
    missing,
    require_at_most,
    require_below,
    required_integer,
    seen,
)
from trainkit.topology.sight import Sight
from trainkit.topology.topology import Topology

__all__ = ["TorchElastic"]

_MARK = "TORCHELASTIC_RUN_ID"

# Launchers around torchrun leave these behind, with the numbers of the agent or of nobody.
_OUTER = (
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_RANK",
    "MV2_COMM_WORLD_SIZE",
    "PMI_RANK",
    "PMI_SIZE",
    "SLURM_PROCID",
    "SLURM_STEP_NUM_TASKS",
    "PET_NNODES",
    "PET_NPROC_PER_NODE",
    "PET_NODE_RANK",
    "DMLC_TASK_ID",
    "DMLC_NUM_WORKER",
)


class TorchElastic:
    """torchrun writes everything a worker needs, and overwrites what the pod had.

    The elastic range is not visible in a worker, so ``min_nodes`` and ``max_nodes`` stay
    unknown. With uneven nodes LOCAL_WORLD_SIZE is this node's alone: nothing is computed
    from it, GROUP_RANK and GROUP_WORLD_SIZE say which node this is.
    """

    name = "torchelastic"

    def detect(self, sight: Sight) -> bool:
        return sight.get(_MARK) is not None

    def topology(self, sight: Sight) -> Topology:
        rank = required_integer(sight, "RANK", _MARK)
        world_size = required_integer(sight, "WORLD_SIZE", _MARK, "RANK", least=1)
        require_below(sight, "RANK", rank, "WORLD_SIZE", world_size)
        local_rank = required_integer(sight, "LOCAL_RANK", _MARK, "RANK")
        local_size = required_integer(sight, "LOCAL_WORLD_SIZE", _MARK, "LOCAL_RANK", least=1)
        require_below(sight, "LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_size)
        require_at_most(sight, "LOCAL_WORLD_SIZE", local_size, "WORLD_SIZE", world_size)
        node_rank = required_integer(sight, "GROUP_RANK", _MARK, "RANK")
        num_nodes = required_integer(sight, "GROUP_WORLD_SIZE", _MARK, "GROUP_RANK", least=1)
        require_below(sight, "GROUP_RANK", node_rank, "GROUP_WORLD_SIZE", num_nodes)
        meeting = master(sight, default_port=None)
        if world_size > 1 and meeting.host is None:
            raise missing(sight, "MASTER_ADDR", _MARK, "WORLD_SIZE")
        if world_size > 1 and meeting.port is None:
            raise missing(sight, "MASTER_PORT", _MARK, "WORLD_SIZE")
        return Topology(
            platform=self.name,
            rank=rank,
            world_size=world_size,
            local_rank=local_rank,
            local_world_size=local_size,
            node_rank=node_rank,
            num_nodes=num_nodes,
            master_addr=meeting.host,
            master_port=meeting.port,
            restart_count=integer(sight, "TORCHELASTIC_RESTART_COUNT") or 0,
            unused=_leftovers(sight),
            sources=_SOURCES,
        )


def _leftovers(sight: Sight) -> tuple[str, ...]:
    outer = seen(sight, *_OUTER)
    if not outer:
        return ()
    return (f"{', '.join(outer)}: of a launcher around torchrun, which is the closest one.",)


_SOURCES = {
    "rank": "RANK",
    "world_size": "WORLD_SIZE",
    "local_rank": "LOCAL_RANK",
    "local_world_size": "LOCAL_WORLD_SIZE",
    "node_rank": "GROUP_RANK",
    "num_nodes": "GROUP_WORLD_SIZE",
    "procs_to_launch": _MARK,
    "master_addr": "MASTER_ADDR",
    "master_port": "MASTER_PORT",
    "restart_count": "TORCHELASTIC_RESTART_COUNT",
}
