"""A process that nothing puts into a job: it trains alone."""

from trainkit.errors import TopologyError
from trainkit.topology.parsing import seen, shown
from trainkit.topology.sight import Sight
from trainkit.topology.topology import Topology

__all__ = ["Local"]

# Variables, those of them that must speak of several before it is worth a warning, and what
# to do if a job was meant. None of it is enough to train together.
_HINTS: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (
        ("JOB_COMPLETION_INDEX",),
        (),
        "an Indexed Job does not say how many pods there are, so this one trains alone. If they "
        "are to train together, set TRAINKIT_NUM_NODES and MASTER_ADDR in the pod",
    ),
    (
        ("SLURM_NTASKS", "SLURM_JOB_NUM_NODES", "SLURM_PROCID"),
        ("SLURM_NTASKS", "SLURM_JOB_NUM_NODES"),
        "a Slurm allocation without SLURM_STEP_ID: this is the batch script or a shell, and one "
        "process. Start the tasks with srun",
    ),
    (
        ("K_MPI_JOB_ROLE",),
        (),
        "a pod of an MPIJob without a hostfile. Start the ranks with mpirun",
    ),
    (
        ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS"),
        (),
        "a size of MPI without a rank. Start the ranks with mpirun",
    ),
    (
        ("LWS_GROUP_SIZE", "LWS_WORKER_INDEX"),
        ("LWS_GROUP_SIZE",),
        "a LeaderWorkerSet. If the group is to train together, set RANK=$(LWS_WORKER_INDEX), "
        "WORLD_SIZE=$(LWS_GROUP_SIZE), MASTER_ADDR=$(LWS_LEADER_ADDRESS) and MASTER_PORT",
    ),
    (
        ("VC_TASK_INDEX",),
        (),
        "a Volcano job without its pytorch plug-in. If its pods are to train together, use that "
        "plug-in, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT",
    ),
    (
        ("SM_HOSTS", "SM_CURRENT_HOST"),
        ("SM_HOSTS",),
        "a SageMaker job of several hosts. If they are to train together, start the script with "
        "torchrun",
    ),
    (
        ("DMLC_TASK_ID", "DMLC_NUM_WORKER"),
        (),
        "part of what a tracker of XGBoost gives. Set DMLC_TRACKER_URI and DMLC_TRACKER_PORT too",
    ),
)

# Seen alone, these are anybody's: nothing to warn of.
_HALVES = (
    "WORLD_SIZE",
    "MASTER_ADDR",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "NPROC_PER_NODE",
    "PET_NODE_RANK",
    "PET_MASTER_ADDR",
    "COORDINATOR_ADDRESS",
    "PROCESS_ID",
    "NUM_PROCESSES",
    "JAX_COORDINATOR_ADDRESS",
    "JAX_PROCESS_ID",
    "JAX_NUM_PROCESSES",
    "PADDLE_MASTER",
    "PADDLE_JOB_ID",
    "MX_CONFIG",
    "CLUSTER_SPEC",
    "DMLC_ROLE",
    "DMLC_TRACKER_URI",
    "WORKER_ADDRS",
)


class Local:
    """The last to be asked; what was seen and is not enough is said in a note.

    PET_NPROC_PER_NODE asks for several ranks on this host, as it does of torchrun.
    """

    name = "local"

    def detect(self, sight: Sight) -> bool:
        return True

    def topology(self, sight: Sight) -> Topology:
        if sight.get("TRAINKIT_PLATFORM") is None:
            _require_index(sight)
        notes, unused = _notes(sight), _unused(sight)
        if sight.get("PET_NPROC_PER_NODE") is None:
            return Topology(platform=self.name, notes=notes, unused=unused)
        # Here, since bare processes start fastest without it.
        from trainkit.topology.meeting import Master
        from trainkit.topology.nodes import node, ranks_per_node

        return node(
            self.name,
            index=(0, "default"),
            count=(1, "default"),
            ranks=ranks_per_node(sight, "PET_NPROC_PER_NODE"),
            master=Master(),
            notes=notes,
            unused=unused,
        )


def _require_index(sight: Sight) -> None:
    """Who asks for several pods must not get one that trains alone."""
    if sight.get("TRAINKIT_NUM_NODES") in (None, "1"):
        return
    raise TopologyError(
        f"{shown(sight, 'TRAINKIT_NUM_NODES')}, and JOB_COMPLETION_INDEX is not set: nothing "
        f"says which of the pods this is. The Job is probably not Indexed. Set its "
        f"completionMode: Indexed, or remove TRAINKIT_NUM_NODES."
    )


def _notes(sight: Sight) -> tuple[str, ...]:
    notes = []
    for names, sizes, hint in _HINTS:
        found = seen(sight, *names)
        if found and (not sizes or any(_several(sight.get(name) or "") for name in sizes)):
            notes.append(f"{', '.join(found)}: {hint}.")
    return tuple(notes)


def _several(size: str) -> bool:
    return "," in size or (size.isdecimal() and size != "1")


def _unused(sight: Sight) -> tuple[str, ...]:
    found = seen(sight, *_HALVES)
    return (f"{', '.join(found)}: not enough to be a job.",) if found else ()
