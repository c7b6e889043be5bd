"""A pod of a TrainJob (trainer.kubeflow.org), by the policy of its runtime: torch, jax, xgboost.

A TrainJob with an MPI policy is ``mpi``; one without a policy, or without ``spec.trainer``,
cannot be told from a lone process.
"""

from trainkit.errors import TopologyError
from trainkit.topology.meeting import Master, master, require_master
from trainkit.topology.nodes import RanksPerNode, gpu_notes, node, ranks_per_node, standalone
from trainkit.topology.parsing import (
    address,
    integer,
    missing,
    port,
    require_below,
    required_integer,
    seen,
    shown,
)
from trainkit.topology.sight import Sight
from trainkit.topology.topology import Role, Topology

__all__ = ["TrainJob"]

_JAX = ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID", "JAX_NUM_PROCESSES")


class TrainJob:
    """torch: PET_* without RANK, written to be read by torchrun; a node of p ranks.

    jax: one process a pod owns all its GPUs. xgboost: DMLC_TASK_ID counts nodes and
    DMLC_NUM_WORKER ranks; neither the number of nodes nor that of ranks a node is given.
    """

    name = "trainjob"

    def detect(self, sight: Sight) -> bool:
        return _torch(sight) or _jax(sight) or _xgboost(sight)

    def topology(self, sight: Sight) -> Topology:
        if _jax(sight) and not _torch(sight):
            return self._jax(sight)
        if _xgboost(sight) and not _torch(sight):
            return self._xgboost(sight)
        return self._torch(sight)

    def _torch(self, sight: Sight) -> Topology:
        count = required_integer(sight, "PET_NNODES", "PET_NODE_RANK", "TRAINKIT_PLATFORM", least=1)
        index = required_integer(sight, "PET_NODE_RANK", "PET_NNODES")
        ranks = ranks_per_node(sight, "PET_NPROC_PER_NODE")
        unused = _leftovers(sight)
        if standalone(sight):
            return node(
                self.name,
                index=(0, "PET_STANDALONE"),
                count=(1, "PET_STANDALONE"),
                ranks=ranks,
                master=Master(),
                notes=("PET_STANDALONE: this node trains alone, whatever PET_NNODES says.",),
                unused=unused,
            )
        require_below(sight, "PET_NODE_RANK", index, "PET_NNODES", count)
        return node(
            self.name,
            index=(index, "PET_NODE_RANK"),
            count=(count, "PET_NNODES"),
            ranks=ranks,
            master=_torch_master(sight, count),
            role=(Role.WORKER, index),
            unused=unused,
        )

    def _jax(self, sight: Sight) -> Topology:
        where, which, many = _JAX
        size = required_integer(sight, many, where, which, least=1)
        index = required_integer(sight, which, where, many)
        require_below(sight, which, index, many, size)
        coordinator = sight.get(where)
        if coordinator is None:
            raise missing(sight, where, which, many)
        host, number = address(where, coordinator)
        return node(
            self.name,
            index=(index, which),
            count=(size, many),
            ranks=RanksPerNode(),
            master=Master(host, number, where, where),
            role=(Role.WORKER, index),
        )

    def _xgboost(self, sight: Sight) -> Topology:
        task, many = "DMLC_TASK_ID", "DMLC_NUM_WORKER"
        workers = required_integer(sight, many, "DMLC_TRACKER_URI", task, least=1)
        index = required_integer(sight, task, "DMLC_TRACKER_URI", many)
        tracker = sight.get("DMLC_TRACKER_URI")
        if tracker is None:
            raise missing(sight, "DMLC_TRACKER_URI", task, many)
        number = port(sight, "DMLC_TRACKER_PORT")
        if number is None:
            raise missing(sight, "DMLC_TRACKER_PORT", "DMLC_TRACKER_URI", task)
        ranks, notes = _xgboost_ranks(sight, index, workers)
        require_below(sight, task, index * ranks.count, many, workers)
        return node(
            self.name,
            index=(index, task),
            count=(
                workers // ranks.count,
                many if ranks.count == 1 else f"{many} / {ranks.source}",
            ),
            ranks=ranks,
            master=Master(tracker, number, "DMLC_TRACKER_URI", "DMLC_TRACKER_PORT"),
            role=(Role.WORKER, index),
            notes=notes,
        )


def _torch(sight: Sight) -> bool:
    return sight.get("PET_NNODES") is not None and sight.get("RANK") is None


def _jax(sight: Sight) -> bool:
    """The coordinator's address with one of the numbers, or both numbers."""
    return sum(sight.get(name) is not None for name in _JAX) >= 2


def _xgboost(sight: Sight) -> bool:
    has_number = sight.get("DMLC_TASK_ID") is not None or sight.get("DMLC_NUM_WORKER") is not None
    return sight.get("DMLC_TRACKER_URI") is not None and has_number


def _torch_master(sight: Sight, count: int) -> Master:
    meeting = master(sight, prefix="PET_")
    endpoint = sight.get("PET_RDZV_ENDPOINT")
    if meeting.host is None and endpoint is not None:
        host, number = address("PET_RDZV_ENDPOINT", endpoint, default_port=29400)
        meeting = Master(host, number, "PET_RDZV_ENDPOINT", "PET_RDZV_ENDPOINT")
    # Nor does torchtune on several nodes have an address: it is only in the command's flags.
    require_master(
        sight, meeting.host, "PET_NNODES", "PET_NODE_RANK", name="PET_MASTER_ADDR", several=count
    )
    return meeting


def _xgboost_ranks(sight: Sight, index: int, workers: int) -> tuple[RanksPerNode, tuple[str, ...]]:
    """One rank per visible GPU, if that fits what the job counts; else one."""
    asked = integer(sight, "PET_NPROC_PER_NODE", least=1) if _number_asked(sight) else None
    if asked is not None:
        if workers % asked:
            raise TopologyError(
                f"{shown(sight, 'DMLC_NUM_WORKER')} is not a multiple of "
                f"{shown(sight, 'PET_NPROC_PER_NODE')}: the nodes would not be equal. Choose a "
                f"number of processes a node that divides it."
            )
        return RanksPerNode(asked, "PET_NPROC_PER_NODE"), ()
    gpus = sight.gpus()
    if gpus > 1 and workers % gpus == 0 and index < workers // gpus:
        return RanksPerNode(gpus, "visible GPUs"), ()
    if gpus > 1:
        fits = (
            f"{shown(sight, 'DMLC_NUM_WORKER')} and {shown(sight, 'DMLC_TASK_ID')} do not fit one "
            f"rank per GPU: one rank is taken for this pod."
        )
        return RanksPerNode(), (fits, *gpu_notes(sight, 1))
    return RanksPerNode(), ()


def _number_asked(sight: Sight) -> bool:
    return sight.get("PET_NPROC_PER_NODE") not in (None, "auto", "gpu", "cpu")


def _leftovers(sight: Sight) -> tuple[str, ...]:
    found = seen(sight, "WORLD_SIZE", "MASTER_ADDR", "LOCAL_RANK", "PET_RDZV_ENDPOINT")
    if sight.get("JOB_COMPLETION_INDEX") != sight.get("PET_NODE_RANK"):
        found += seen(sight, "JOB_COMPLETION_INDEX")
    return (f"{', '.join(found)}: in a TrainJob PET_* decide.",) if found else ()
