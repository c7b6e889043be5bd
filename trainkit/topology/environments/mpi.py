"""A rank that mpirun, mpiexec or mpirun_rsh has started."""

from dataclasses import dataclass

from trainkit.errors import TopologyError
from trainkit.topology.meeting import Master, master
from trainkit.topology.nodes import gpu_notes
from trainkit.topology.parsing import (
    integer,
    missing,
    require_at_most,
    require_below,
    required_integer,
    seen,
    shown,
)
from trainkit.topology.sight import Sight
from trainkit.topology.topology import Topology

__all__ = ["Mpi"]


@dataclass(frozen=True, slots=True)
class _Dialect:
    """The names that one family of MPI launchers uses."""

    rank: str
    size: str
    local_rank: str
    local_size: str
    node: str
    num_nodes: str


# OMPI_COMM_WORLD_NODE_RANK is, against its name, the rank *within* the node.
_OPEN_MPI = _Dialect(
    rank="OMPI_COMM_WORLD_RANK",
    size="OMPI_COMM_WORLD_SIZE",
    local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
    local_size="OMPI_COMM_WORLD_LOCAL_SIZE",
    node="",
    num_nodes="OMPI_MCA_orte_num_nodes",
)
_MVAPICH = _Dialect(
    rank="MV2_COMM_WORLD_RANK",
    size="MV2_COMM_WORLD_SIZE",
    local_rank="MV2_COMM_WORLD_LOCAL_RANK",
    local_size="MV2_COMM_WORLD_LOCAL_SIZE",
    node="MV2_NODE_ID",
    num_nodes="MV2_NUM_NODES_IN_JOB",
)
_HYDRA = _Dialect(
    rank="PMI_RANK",
    size="PMI_SIZE",
    local_rank="MPI_LOCALRANKID",
    local_size="MPI_LOCALNRANKS",
    node="HYDRA_BSTRAP_NODE_ID",
    num_nodes="",
)
_FLUX = _Dialect(
    rank="PMI_RANK",
    size="PMI_SIZE",
    local_rank="FLUX_TASK_LOCAL_ID",
    local_size="",
    node="",
    num_nodes="FLUX_JOB_NNODES",
)


class Mpi:
    """Open MPI 4 and 5, MPICH, Intel MPI and MVAPICH2, by their own variables.

    No launcher gives a master address: that is the user's, or the communicator's business.
    Only some say which node a rank is on; for the others it follows where ranks were placed
    in blocks, and stays unknown where they were dealt out in turn.
    """

    name = "mpi"

    def detect(self, sight: Sight) -> bool:
        if sight.get(_OPEN_MPI.rank) or sight.get(_MVAPICH.rank):
            return True
        hydra = sight.get(_HYDRA.local_rank) is not None
        if sight.get(_HYDRA.rank):
            # Slurm's own PMI plug-ins set PMI_RANK too, without local numbers.
            in_step = sight.get("SLURM_STEP_ID") and sight.get("SLURM_PROCID")
            return hydra or not in_step
        return hydra and sight.get("PMI_ID") is not None

    def topology(self, sight: Sight) -> Topology:
        names = _dialect(sight)
        rank = required_integer(sight, names.rank, names.size, names.local_rank)
        size = required_integer(sight, names.size, names.rank, least=1)
        require_below(sight, names.rank, rank, names.size, size)
        local_rank, local_size = _local(sight, names, size)
        node_rank, num_nodes = _node(sight, names, (rank, size), (local_rank, local_size))
        meeting = _master(sight)
        return Topology(
            platform=self.name,
            rank=rank,
            world_size=size,
            local_rank=local_rank,
            local_world_size=local_size or 1,
            node_rank=node_rank,
            num_nodes=num_nodes,
            master_addr=meeting.host,
            master_port=meeting.port,
            notes=_notes(sight, names, local_size),
            unused=_leftovers(sight, meeting),
            sources={
                "rank": names.rank,
                "world_size": names.size,
                "local_rank": names.local_rank,
                "local_world_size": names.local_size,
                "node_rank": names.node or f"{names.rank}, {names.local_size}",
                "num_nodes": names.num_nodes or f"{names.size}, {names.local_size}",
                "procs_to_launch": names.rank,
                "master_addr": meeting.host_source,
                "master_port": meeting.port_source,
            },
        )


def _dialect(sight: Sight) -> _Dialect:
    for names in (_OPEN_MPI, _MVAPICH):
        if sight.get(names.rank) is not None:
            return names
    if sight.get("PMI_RANK") is None and sight.get("PMI_ID") is not None:
        found = ", ".join(seen(sight, "PMI_ID", "PMI_PORT", _HYDRA.local_rank))
        raise TopologyError(
            f"PMI_RANK and PMI_SIZE are not set, but {found}. mpiexec was probably called with "
            f"-pmi-port, which does not tell a rank how many there are. Call it without."
        )
    if sight.get("FLUX_TASK_RANK") is not None and sight.get(_HYDRA.local_rank) is None:
        return _FLUX
    return _HYDRA


def _local(sight: Sight, names: _Dialect, size: int) -> tuple[int | None, int | None]:
    """Rank and number of ranks within the node; None where the launcher does not say."""
    local_rank = integer(sight, names.local_rank)
    local_size = integer(sight, names.local_size, least=1)
    if local_rank is not None and local_size is not None:
        require_below(sight, names.local_rank, local_rank, names.local_size, local_size)
    if local_size is not None:
        require_at_most(sight, names.local_size, local_size, names.size, size)
    if size == 1:
        return 0, 1
    if local_rank is None and local_size is not None:
        raise missing(sight, names.local_rank, names.local_size, names.rank)
    if local_size is None and names.local_size and local_rank is not None:
        raise missing(sight, names.local_size, names.local_rank, names.rank)
    return local_rank, local_size


def _node(
    sight: Sight,
    names: _Dialect,
    ranks: tuple[int, int],
    local: tuple[int | None, int | None],
) -> tuple[int | None, int | None]:
    """Index of this node and number of nodes, where it is certain enough to be said."""
    (rank, size), (local_rank, local_size) = ranks, local
    node = integer(sight, names.node)
    num_nodes = integer(sight, names.num_nodes, least=1)
    if node is not None and num_nodes is not None:
        require_below(sight, names.node, node, names.num_nodes, num_nodes)
    if local_size is None:
        return node, num_nodes
    if size % local_size == 0 and num_nodes in (None, size // local_size):
        # As many on each node, as far as one rank can see; uneven nodes may look like this.
        num_nodes = size // local_size
        if node is None and rank % local_size == local_rank:
            node = rank // local_size
    if node is not None and num_nodes is not None and node >= num_nodes:
        num_nodes = None
    return node, num_nodes


def _master(sight: Sight) -> Master:
    """The user's MASTER_ADDR, unless it belongs to the pod around mpirun."""
    if sight.get("LOCAL_RANK") is None and seen(sight, "RANK", "WORLD_SIZE", "PET_NNODES"):
        # mpirun inside a PyTorchJob: the pod's address is that of another world. A wrapper that
        # copies MPI's numbers to RANK sets LOCAL_RANK as well; no operator does.
        return Master()
    return master(sight, default_port=None)


def _notes(sight: Sight, names: _Dialect, local_size: int | None) -> tuple[str, ...]:
    if local_size is None:
        return (
            f"{shown(sight, names.rank)} comes without local numbers: which ranks share a node "
            f"is not known.",
        )
    return gpu_notes(sight, local_size)


def _leftovers(sight: Sight, meeting: Master) -> tuple[str, ...]:
    outer = [
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "PET_NNODES",
        "SLURM_PROCID",
        "SLURM_STEP_NUM_TASKS",
    ]
    if meeting.host is None:
        outer += ["MASTER_ADDR", "MASTER_PORT"]
    found = seen(sight, *outer)
    if not found:
        return ()
    return (f"{', '.join(found)}: of something around the MPI launcher, the closest one.",)
