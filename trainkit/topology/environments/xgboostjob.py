"""A pod of an XGBoostJob (kubeflow.org/v1) with workers."""

from trainkit.errors import TopologyError
from trainkit.topology.meeting import master, require_master
from trainkit.topology.nodes import RanksPerNode, gpu_notes, node
from trainkit.topology.parsing import require_below, required_integer, seen, shown
from trainkit.topology.sight import Sight
from trainkit.topology.topology import Role, Topology

__all__ = ["XGBoostJob"]

_PORT = 9999


class XGBoostJob:
    """The names of an old PyTorchJob; WORKER_ADDRS is what tells them apart.

    RANK is the rank already, one a pod whatever GPUs it has. A job of the Master alone has no
    WORKER_ADDRS, and is recognised by TRAINKIT_PLATFORM only.
    """

    name = "xgboostjob"

    def detect(self, sight: Sight) -> bool:
        return sight.get("WORKER_ADDRS") is not None and sight.get("RANK") is not None

    def topology(self, sight: Sight) -> Topology:
        rank = required_integer(sight, "RANK", "WORKER_ADDRS", "TRAINKIT_PLATFORM")
        size = required_integer(sight, "WORLD_SIZE", "RANK", "WORKER_ADDRS", least=1)
        require_below(sight, "RANK", rank, "WORLD_SIZE", size)
        _require_workers(sight, size)
        meeting = master(sight, default_port=_PORT)
        require_master(sight, meeting.host, "RANK", "WORLD_SIZE", several=size)
        return node(
            self.name,
            index=(rank, "RANK"),
            count=(size, "WORLD_SIZE"),
            ranks=RanksPerNode(),
            master=meeting,
            role=(Role.CHIEF, 0) if rank == 0 else (Role.WORKER, rank - 1),
            notes=gpu_notes(sight, 1),
            unused=_leftovers(sight),
        )


def _require_workers(sight: Sight, size: int) -> None:
    """WORKER_ADDRS lists everybody but the Master."""
    addresses = sight.get("WORKER_ADDRS")
    if addresses is None:
        return
    workers = sum(1 for address in addresses.split(",") if address.strip())
    if workers != size - 1:
        raise TopologyError(
            f"{shown(sight, 'WORKER_ADDRS')} lists {workers} workers, and "
            f"{shown(sight, 'WORLD_SIZE')} makes {size - 1} beside the Master. Probably the "
            f"command changed one of them. Leave both as the operator set them."
        )


def _leftovers(sight: Sight) -> tuple[str, ...]:
    found = seen(sight, "PET_NPROC_PER_NODE", "NPROC_PER_NODE", "JOB_COMPLETION_INDEX")
    return (f"{', '.join(found)}: an XGBoostJob pod is one rank.",) if found else ()
