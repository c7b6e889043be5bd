"""A pod of a TFJob, or any process with a TF_CONFIG."""

from __future__ import annotations

import json
import re

from trainkit.errors import TopologyError
from trainkit.topology.parsing import address, missing
from trainkit.topology.sight import Sight
from trainkit.topology.topology import Role, Topology

TYPE_CHECKING = False  # typing itself is a tenth of what `trainkit env` imports
if TYPE_CHECKING:
    from typing import Any

__all__ = ["TFJob"]

_NAME = "TF_CONFIG"
_ROLES = {
    "chief": Role.CHIEF,
    "master": Role.CHIEF,  # its name in TensorFlow 1
    "worker": Role.WORKER,
    "ps": Role.PS,
    "evaluator": Role.EVALUATOR,
}


class TFJob:
    """chief is rank 0, worker i comes after the chiefs; ps and evaluator have no rank.

    The operator lists the evaluator in the cluster; it is taken out, since TensorFlow's
    strategies wait for everybody in there. A *sparse* cluster (enableDynamicWorker) shows a
    pod little more than itself: rank and world size are then unknown.
    """

    name = "tfjob"

    def detect(self, sight: Sight) -> bool:
        # "{}" is how one switches TensorFlow's cluster off.
        return sight.get(_NAME) not in (None, "{}")

    def topology(self, sight: Sight) -> Topology:
        config = _load(sight)
        kind, index = _task(config)
        role = _ROLES[kind]
        cluster, sparse = _cluster(config)
        if sparse:
            return self._sparse(role, index, cluster)
        chiefs = cluster.get("chief", [])
        workers = cluster.get("worker", [])
        _require_listed(config, kind, index, cluster)
        size = len(chiefs) + len(workers)
        if size == 0 and role is not Role.EVALUATOR:
            raise _fault("names neither chief nor worker in its cluster", "Add them.")
        trains = role in (Role.CHIEF, Role.WORKER)
        rank = (index if role is Role.CHIEF else len(chiefs) + index) if trains else None
        first = next(iter([*chiefs, *workers]), None)
        host, port = _address_of(first)
        return Topology(
            platform=self.name,
            role=role,
            role_index=index,
            rank=rank,
            world_size=size or None,
            local_rank=0 if trains else None,
            local_world_size=1 if trains else 0,
            node_rank=rank,
            num_nodes=size or None,
            master_addr=host,
            master_port=port,
            cluster=cluster,
            sources=dict.fromkeys(_DECIDED, _NAME),
        )

    def _sparse(self, role: Role, index: int, cluster: dict[str, list[str]]) -> Topology:
        trains = role in (Role.CHIEF, Role.WORKER)
        return Topology(
            platform=self.name,
            role=role,
            role_index=index,
            rank=None,
            world_size=None,
            local_rank=0 if trains else None,
            local_world_size=1 if trains else 0,
            node_rank=None,
            num_nodes=None,
            cluster=cluster,
            notes=(
                "TF_CONFIG is sparse (enableDynamicWorker): workers come and go, and rank and "
                "world size are not known.",
            ),
            sources=dict.fromkeys(_DECIDED, _NAME),
        )


_DECIDED = (
    "role",
    "role_index",
    "rank",
    "world_size",
    "local_rank",
    "local_world_size",
    "node_rank",
    "num_nodes",
    "procs_to_launch",
    "master_addr",
    "master_port",
    "cluster",
)


def _fault(found: str, advice: str) -> TopologyError:
    return TopologyError(
        f"{_NAME} {found}. Somebody probably wrote it by hand or a script cut it. {advice}"
    )


def _load(sight: Sight) -> dict[str, Any]:
    text = sight.get(_NAME)
    if text is None:
        raise missing(sight, _NAME, "TRAINKIT_PLATFORM")
    try:
        config = json.loads(text)
    except json.JSONDecodeError as reason:
        near = text[max(0, reason.pos - 20) : reason.pos + 20]
        raise _fault(
            f"is not JSON: {reason.msg} at line {reason.lineno}, column {reason.colno}, near "
            f"{near!r}",
            "JSON wants double quotes and no comma before a closing bracket; check that no "
            "shell ate the quotes.",
        ) from None
    except (ValueError, RecursionError) as reason:
        raise _fault(f"cannot be read ({reason})", "Leave it as the operator set it.") from None
    if not isinstance(config, dict):
        raise _fault(f"is a {type(config).__name__}, not an object", "Write {…}.")
    return config


def _task(config: dict[str, Any]) -> tuple[str, int]:
    task = config.get("task")
    if not isinstance(task, dict):
        raise _fault(
            f"has no object 'task' (found: {', '.join(config) or 'nothing'})",
            'Add "task": {"type": "worker", "index": 0}.',
        )
    kind, index = task.get("type"), task.get("index")
    if not isinstance(kind, str) or kind not in _ROLES:
        raise _fault(f"has task.type {kind!r}", f"Known types are {', '.join(_ROLES)}.")
    text = str(index)
    # TensorFlow applies int() to it, so "0" in quotes is as good.
    if isinstance(index, bool | float) or not re.fullmatch("[0-9]{1,9}", text):
        raise _fault(f"has task.index {index!r}", "It counts tasks of one type from 0.")
    return kind, int(text)


def _cluster(config: dict[str, Any]) -> tuple[dict[str, list[str]], bool]:
    """Role → addresses without the evaluator, and whether the cluster is sparse."""
    key = "cluster" if "cluster" in config else "sparseCluster"  # operators up to 1.6
    given = config.get(key)
    if not isinstance(given, dict):
        raise _fault(
            f"has no object 'cluster' (found: {', '.join(config)})",
            'Add "cluster": {"worker": ["host:2222"]}.',
        )
    if "chief" in given and "master" in given:
        raise _fault("has both chief and master in its cluster", "Keep one: chief.")
    sparse = key == "sparseCluster"
    cluster = {}
    for name, addresses in given.items():
        if isinstance(addresses, dict):
            sparse = True
            addresses = list(addresses.values())
        if not isinstance(addresses, list) or not all(isinstance(a, str) and a for a in addresses):
            raise _fault(
                f"has {str(addresses)[:80]!r} for {name!r} in its cluster",
                'Write a list of addresses, such as ["host:2222"].',
            )
        if name != "evaluator":
            cluster["chief" if name == "master" else name] = addresses
    return cluster, sparse


def _require_listed(
    config: dict[str, Any], kind: str, index: int, cluster: dict[str, list[str]]
) -> None:
    """The task must be in the cluster; an evaluator may be absent from its own."""
    key = "chief" if kind == "master" else kind
    listed = config["cluster"].get(kind) if kind == "evaluator" else cluster.get(key)
    if listed is None and kind == "evaluator":
        return
    count = len(listed or [])
    if index >= count:
        raise _fault(
            f"says {kind} {index}, and its cluster lists {count} of them",
            f"Indexes count from 0; the cluster needs {index + 1}.",
        )


def _address_of(first: str | None) -> tuple[str | None, int | None]:
    """Host and port of the task that holds rank 0."""
    if first is None:
        return None, None
    return address(_NAME, first)
