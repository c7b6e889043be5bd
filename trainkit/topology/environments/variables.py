"""RANK and WORLD_SIZE from somebody unknown: by hand, an old operator, a managed platform."""

from trainkit.topology.meeting import Master, master, require_master
from trainkit.topology.nodes import gpu_notes, node, ranks_per_node
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

__all__ = ["Variables"]


class Variables:
    """True ranks, unless NPROC_PER_NODE beside them says that they count nodes.

    That is how Alibaba's DLC and Baidu's AIHC write it, and what PET_NPROC_PER_NODE means in
    a pod of an old operator. Without it they are taken at their word, also by a pod with
    several GPUs.
    """

    name = "env"

    def detect(self, sight: Sight) -> bool:
        if sight.get("RANK") is not None:
            return True
        # Half a topology must not train alone; beside an index it is that of an Indexed Job.
        return (
            sight.get("WORLD_SIZE") not in (None, "1") and sight.get("JOB_COMPLETION_INDEX") is None
        )

    def topology(self, sight: Sight) -> Topology:
        others = ("MASTER_ADDR", "LOCAL_RANK", "TRAINKIT_PLATFORM")
        rank = required_integer(sight, "RANK", "WORLD_SIZE", *others)
        size = required_integer(sight, "WORLD_SIZE", "RANK", *others, least=1)
        require_below(sight, "RANK", rank, "WORLD_SIZE", size)
        meeting = master(sight)
        require_master(sight, meeting.host, "RANK", "WORLD_SIZE", several=size)
        if sight.get("LOCAL_RANK") is None and seen(sight, *_NODE_COUNTING):
            return node(
                self.name,
                index=(rank, "RANK"),
                count=(size, "WORLD_SIZE"),
                ranks=ranks_per_node(sight, *_NODE_COUNTING),
                master=meeting,
                unused=_leftovers(sight),
            )
        return self._rank(sight, rank, size, meeting)

    def _rank(self, sight: Sight, rank: int, size: int, meeting: Master) -> Topology:
        local_rank, local_size = _local(sight, rank, size)
        node_rank, num_nodes = _node(sight, rank, size, (local_rank, local_size))
        notes: tuple[str, ...] = ()
        if local_size is None:
            notes = ("LOCAL_WORLD_SIZE is not set: how many ranks share this host is not known.",)
        return Topology(
            platform=self.name,
            rank=rank,
            world_size=size,
            local_rank=local_rank,
            local_world_size=local_rank + 1 if local_size is None else local_size,
            node_rank=node_rank,
            num_nodes=num_nodes,
            master_addr=meeting.host,
            master_port=meeting.port,
            notes=notes or gpu_notes(sight, local_size or 1),
            unused=_leftovers(sight),
            sources={
                "rank": "RANK",
                "world_size": "WORLD_SIZE",
                "local_rank": "LOCAL_RANK" if sight.get("LOCAL_RANK") else "default",
                "local_world_size": "LOCAL_WORLD_SIZE" if local_size else "LOCAL_RANK",
                "node_rank": "NODE_RANK" if sight.get("NODE_RANK") else "RANK, LOCAL_WORLD_SIZE",
                "num_nodes": "WORLD_SIZE, LOCAL_WORLD_SIZE",
                "procs_to_launch": "RANK",
                "master_addr": meeting.host_source,
                "master_port": meeting.port_source,
            },
        )


_NODE_COUNTING = ("NPROC_PER_NODE", "PET_NPROC_PER_NODE")


def _local(sight: Sight, rank: int, size: int) -> tuple[int, int | None]:
    """Rank and number of ranks of this host; the number is None where nothing says it."""
    local_rank = integer(sight, "LOCAL_RANK")
    local_size = integer(sight, "LOCAL_WORLD_SIZE", least=1)
    if local_size is not None:
        require_at_most(sight, "LOCAL_WORLD_SIZE", local_size, "WORLD_SIZE", size)
        if local_rank is not None:
            require_below(sight, "LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_size)
        elif local_size > 1:
            raise missing(sight, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "RANK")
        return local_rank or 0, local_size
    if local_rank is None:
        return 0, 1
    require_below(sight, "LOCAL_RANK", local_rank, "WORLD_SIZE", size)
    if size == 1:
        return 0, 1
    node_rank = integer(sight, "NODE_RANK")  # Azure ML: processes, and no LOCAL_WORLD_SIZE
    if node_rank and rank > local_rank and (rank - local_rank) % node_rank == 0:
        return local_rank, (rank - local_rank) // node_rank
    return local_rank, None


def _node(
    sight: Sight, rank: int, size: int, local: tuple[int, int | None]
) -> tuple[int | None, int | None]:
    """Index and number of hosts, where ranks lie in equal blocks."""
    local_rank, local_size = local
    given = integer(sight, "NODE_RANK")
    if local_size is None or size % local_size:
        return given, None
    in_blocks = rank % local_size == local_rank
    if given is None and in_blocks:
        given = rank // local_size
    return given, size // local_size


def _leftovers(sight: Sight) -> tuple[str, ...]:
    names = ["JOB_COMPLETION_INDEX", "TRAINKIT_NUM_NODES", "WORKER_PORT"]
    if sight.get("LOCAL_RANK") is not None:
        names += [*_NODE_COUNTING, "PET_NNODES", "PET_NODE_RANK"]
    found = seen(sight, *names)
    return (f"{', '.join(found)}: RANK and WORLD_SIZE decide.",) if found else ()
