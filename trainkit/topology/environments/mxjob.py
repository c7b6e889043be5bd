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

    The operator and MXNet are retired; trainkit trains torch in such a job, with the strategy
    ``parameter_server``. The scheduler has no index: all it has to do there is to end with the
    job, since the operator takes its end for the job's.
    """

    name = "mxjob"

    def detect(self, sight: Sight) -> bool:
        return sight.get("MX_CONFIG") is not None and sight.get("DMLC_ROLE") is not None

    def topology(self, sight: Sight) -> Topology:
        word = sight.get("DMLC_ROLE")
        role = _ROLES.get(word or "")
        if role is None:
            raise malformed(sight, "DMLC_ROLE", "one of " + ", ".join(_ROLES))
        config = _config(sight)
        index = _index(sight, config)
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
            role_index=None if word == "scheduler" else index,
            rank=index if trains else None,
            world_size=size or None,
            local_rank=0 if trains else None,
            local_world_size=1 if trains else 0,
            node_rank=index if trains else None,
            num_nodes=size or None,
            master_addr=host,
            master_port=port(sight, "DMLC_PS_ROOT_PORT") if host else None,
            cluster=_cluster(config),
            notes=(
                "MXJob and MXNet are retired: train PyTorch here with strategy='parameter_server', "
                "or move the job to a PyTorchJob or TrainJob.",
            ),
            sources={
                "role": "DMLC_ROLE",
                "cluster": "MX_CONFIG",
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


def _config(sight: Sight) -> dict[str, Any]:
    try:
        config: Any = json.loads(sight.get("MX_CONFIG") or "{}")
    except (ValueError, RecursionError) as reason:
        raise TopologyError(
            f"MX_CONFIG is not JSON: {reason}. Somebody probably wrote it by hand. Leave it as "
            f"the operator set it."
        ) from None
    return config if isinstance(config, dict) else {}


def _index(sight: Sight, config: dict[str, Any]) -> int | None:
    """Index within the role: of a worker in DMLC_WORKER_ID too, of others in MX_CONFIG alone."""
    worker = integer(sight, "DMLC_WORKER_ID")
    task = config.get("task")
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


def _cluster(config: dict[str, Any]) -> dict[str, list[str]] | None:
    """Addresses of servers and workers, under the names that the roles have everywhere."""
    given = config.get("cluster")
    if not isinstance(given, dict):
        return None
    found = {}
    for name, role in (("server", "ps"), ("worker", "worker")):
        tasks = given.get(name)
        if not isinstance(tasks, list) or not tasks:
            continue
        if not all(isinstance(task, dict) and "url" in task and "port" in task for task in tasks):
            raise TopologyError(
                f"MX_CONFIG has {str(tasks)[:80]!r} for {name!r} in its cluster: expected a list "
                f'of {{"url": …, "port": …}}. Leave it as the operator set it.'
            )
        found[role] = [f"{task['url']}:{task['port']}" for task in tasks]
    return found or None
