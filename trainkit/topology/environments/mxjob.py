"""A pod of an MXJob (kubeflow.org/v1, up to operator 1.8)."""

from __future__ import annotations

import json

from trainkit.errors import TopologyError
from trainkit.topology.parsing import integer, malformed, port, require_below, shown
from trainkit.topology.sight import Sight
from trainkit.topology.topology import Role, Topology

TYPE_CHECKING = False  # typing itself is a tenth of what `trainkit env` imports
if TYPE_CHECKING:
    from typing import Any

__all__ = ["MXJob"]

_ROLES = {
    "worker": Role.WORKER,
    "server": Role.PS,
    "scheduler": Role.PS,
    "tuner": Role.WORKER,
    "tunerserver": Role.PS,
    "tunertracker": Role.PS,
}


class MXJob:
    """MXNet's parameter servers: workers have ranks, servers and the scheduler have none.

    The operator and MXNet are retired: the pod is recognised, so that it is not taken for a
    lone process, and told what to use instead.
    """

    name = "mxjob"

    def detect(self, sight: Sight) -> bool:
        return sight.get("MX_CONFIG") is not None and sight.get("DMLC_ROLE") is not None

    def topology(self, sight: Sight) -> Topology:
        word = sight.get("DMLC_ROLE")
        role = _ROLES.get(word or "")
        if role is None:
            raise malformed(sight, "DMLC_ROLE", "one of " + ", ".join(_ROLES))
        index = _index(sight)
        size = integer(sight, "DMLC_NUM_WORKER")
        trains = word == "worker"
        if trains and index is not None and size:
            source = "DMLC_WORKER_ID" if sight.get("DMLC_WORKER_ID") else "MX_CONFIG"
            require_below(sight, source, index, "DMLC_NUM_WORKER", size)
        # Without a scheduler the operator writes an empty host and port 0.
        host = sight.get("DMLC_PS_ROOT_URI")
        return Topology(
            platform=self.name,
            role=role,
            role_index=index,
            rank=index if trains else None,
            world_size=size or None,
            local_rank=0 if trains else None,
            local_world_size=1 if trains else 0,
            node_rank=index if trains else None,
            num_nodes=size or None,
            master_addr=host,
            master_port=port(sight, "DMLC_PS_ROOT_PORT") if host else None,
            notes=(
                "MXJob and MXNet are retired, and trainkit has no strategy for them: move the "
                "training to PyTorch, and the job to a PyTorchJob or TrainJob.",
            ),
            sources={
                "role": "DMLC_ROLE",
                "role_index": "MX_CONFIG",
                "rank": "DMLC_WORKER_ID",
                "local_rank": "DMLC_ROLE",
                "local_world_size": "DMLC_ROLE",
                "world_size": "DMLC_NUM_WORKER",
                "node_rank": "DMLC_WORKER_ID",
                "num_nodes": "DMLC_NUM_WORKER",
                "master_addr": "DMLC_PS_ROOT_URI",
                "master_port": "DMLC_PS_ROOT_PORT",
            },
        )


def _index(sight: Sight) -> int | None:
    """Index within the role: of a worker in DMLC_WORKER_ID too, of others in MX_CONFIG alone."""
    worker = integer(sight, "DMLC_WORKER_ID")
    try:
        config: Any = json.loads(sight.get("MX_CONFIG") or "{}")
    except (ValueError, RecursionError) as reason:
        raise TopologyError(
            f"MX_CONFIG is not JSON: {reason}. Somebody probably wrote it by hand. Leave it as "
            f"the operator set it."
        ) from None
    task = config.get("task") if isinstance(config, dict) else None
    index = task.get("index") if isinstance(task, dict) else None
    if index is None:
        return worker
    if not isinstance(index, int) or index < 0:
        raise TopologyError(f"MX_CONFIG has task.index {index!r}: expected a number from 0.")
    if worker is not None and worker != index:
        raise TopologyError(
            f"{shown(sight, 'DMLC_WORKER_ID')} and task.index {index} of MX_CONFIG name two "
            f"workers. Probably the command changed one. Leave both as the operator set them."
        )
    return index
