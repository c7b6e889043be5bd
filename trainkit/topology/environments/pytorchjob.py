"""A pod of a PyTorchJob (kubeflow.org/v1), in all the forms that its operators gave it."""

import re

from trainkit.errors import TopologyError
from trainkit.topology.meeting import Master, master, require_master
from trainkit.topology.nodes import RanksPerNode, node, ranks_per_node, standalone
from trainkit.topology.parsing import (
    address,
    malformed,
    name_index,
    require_below,
    required_integer,
    seen,
    shown,
)
from trainkit.topology.sight import Sight
from trainkit.topology.topology import Role, Topology

__all__ = ["PyTorchJob"]

_PORT = 23456
_ELASTIC_PORT = 29400
_NPROC = ("PET_NPROC_PER_NODE", "PET_N_PROC_PER_NODE")  # operator 1.4 misspelt it


class PyTorchJob:
    """RANK counts pods, WORLD_SIZE pods or processes: neither is a rank or a world by itself.

    Four forms: *static* with a Master (RANK, PET_NNODES), *elastic* (PET_RDZV_ENDPOINT: all
    else is void until the rendezvous), *Worker only* (PET_NNODES alone: the host name gives
    the index), and the pods of operators before 1.7, which have RANK, WORLD_SIZE and nothing
    that tells a PyTorchJob from anything else; these are recognised by TRAINKIT_PLATFORM only.
    """

    name = "pytorchjob"

    def detect(self, sight: Sight) -> bool:
        local = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if all(sight.get(name) is not None for name in local):
            return False  # a launcher within the pod started this process; operators set no LOCAL_*
        if _elastic(sight):
            return True
        if sight.get("PET_NNODES") is None:
            return False
        return sight.get("RANK") is not None or sight.get("PET_NODE_RANK") is None

    def topology(self, sight: Sight) -> Topology:
        if standalone(sight):
            return self._elastic(sight, alone=True)
        if _elastic(sight):
            return self._elastic(sight, alone=False)
        if sight.get("PET_NNODES") is None or sight.get("RANK") is not None:
            return self._with_master(sight)
        return self._worker_only(sight)

    def _with_master(self, sight: Sight) -> Topology:
        index = required_integer(sight, "RANK", "WORLD_SIZE", "PET_NNODES", "TRAINKIT_PLATFORM")
        world_size = required_integer(sight, "WORLD_SIZE", "RANK", "PET_NNODES", least=1)
        ranks = ranks_per_node(sight, *_NPROC)
        counts = "WORLD_SIZE" if sight.get("PET_NNODES") is None else "PET_NNODES"
        count = world_size if counts == "WORLD_SIZE" else _static_nodes(sight)
        if sight.get("PET_NODE_RANK") is not None:
            _require_same_index(sight, index)
        require_below(sight, "RANK", index, counts, count)
        _require_world_size(sight, world_size, count, ranks)
        return node(
            self.name,
            index=(index, "RANK"),
            count=(count, counts),
            ranks=ranks,
            master=_master(sight, counts, count),
            role=(Role.CHIEF, 0) if index == 0 else (Role.WORKER, index - 1),
        )

    def _worker_only(self, sight: Sight) -> Topology:
        """No Master and no elasticPolicy: the operator gives no index and no address."""
        count = _static_nodes(sight)
        ranks = ranks_per_node(sight, *_NPROC)
        found = name_index(sight.hostname, "worker")
        if count > 1 and found is None:
            raise TopologyError(
                f"PET_NODE_RANK is not set, and the host name {sight.hostname!r} does not end in "
                f"worker-<index>: nothing says which of {shown(sight, 'PET_NNODES')} this pod is. "
                f"A PyTorchJob without Master gives no index, and with hostNetwork the pod has "
                f"the machine's name. Add a Master or an elasticPolicy to the job, or set "
                f"PET_NODE_RANK and PET_MASTER_ADDR."
            )
        job, index = found or ("", 0)
        if count > 1 and index >= count:
            raise TopologyError(
                f"the host name {sight.hostname!r} says worker {index}, and "
                f"{shown(sight, 'PET_NNODES')} counts from 0 to {count - 1}. The job was probably "
                f"scaled up after this pod's variables were written. Start the job again."
            )
        meeting = master(sight, prefix="PET_", default_port=_PORT)
        if meeting.host is None:
            meeting = master(sight, default_port=_PORT)
        if meeting.host is None and job and (count > 1 or index == 0):
            meeting = Master(f"{job}-worker-0", _PORT, "host name")
        return node(
            self.name,
            index=(index if count > 1 else 0, "host name" if found else "PET_NNODES"),
            count=(count, "PET_NNODES"),
            ranks=ranks,
            master=meeting,
            role=(Role.WORKER, index if found else None),
            unused=_void(sight, "a PyTorchJob of Workers only gives no rank", "WORLD_SIZE"),
        )

    def _elastic(self, sight: Sight, *, alone: bool) -> Topology:
        least, most = (1, 1) if alone else _node_range(sight)
        ranks = ranks_per_node(sight, *_NPROC)
        endpoint = sight.get("PET_RDZV_ENDPOINT")
        host, port = None, None
        if endpoint is not None and not alone:
            host, port = address("PET_RDZV_ENDPOINT", endpoint, default_port=_ELASTIC_PORT)
        found = name_index(sight.hostname, "worker")
        why = "standalone: one node" if alone else "only the rendezvous decides"
        return Topology(
            platform=self.name,
            role_index=found[1] if found else None,
            rank=0 if alone else None,
            world_size=ranks.count if alone else None,
            local_rank=None,
            local_world_size=ranks.count,
            node_rank=0 if alone else None,
            num_nodes=1 if alone else None,
            master_addr=host,
            master_port=port,
            procs_to_launch=ranks.count,
            min_nodes=least,
            max_nodes=most,
            notes=ranks.notes + (() if alone else _left_out(sight, most)),
            unused=_void(sight, why, "RANK", "WORLD_SIZE", "MASTER_ADDR", "PET_NODE_RANK")
            + (_void(sight, why, "PET_RDZV_ENDPOINT", "PET_NNODES") if alone else ()),
            sources=_elastic_sources(ranks, alone),
        )


def _elastic(sight: Sight) -> bool:
    """Whether ranks come out of a rendezvous."""
    if sight.get("PET_RDZV_ENDPOINT") is None:
        return False
    # PET_NODE_RANK without RANK is a TrainJob's; its author may add an endpoint for torchrun.
    trainjob = sight.get("PET_NODE_RANK") is not None and sight.get("RANK") is None
    return not trainjob or ":" in (sight.get("PET_NNODES") or "")


def _node_range(sight: Sight) -> tuple[int, int]:
    """Ends of PET_NNODES, ``MIN:MAX`` or one number; torchrun's 1 without it."""
    found = re.fullmatch(r"([0-9]{1,9})(?::([0-9]{1,9}))?", sight.get("PET_NNODES") or "1")
    if not found or int(found[1]) < 1:
        raise malformed(sight, "PET_NNODES", "MIN:MAX or one number, 1 or more")
    least, most = int(found[1]), int(found[2] or found[1])
    if least > most:
        raise malformed(sight, "PET_NNODES", "MIN:MAX with MIN at most MAX")
    return least, most


def _static_nodes(sight: Sight) -> int:
    least, most = _node_range(sight)
    if least != most:
        raise TopologyError(
            f"{shown(sight, 'PET_NNODES')} is an elastic range, and PET_RDZV_ENDPOINT is not set: "
            f"nothing says where the nodes meet. Set PET_RDZV_ENDPOINT, or one number of nodes."
        )
    return least


def _require_same_index(sight: Sight, index: int) -> None:
    other = required_integer(sight, "PET_NODE_RANK", "RANK")
    if other != index:
        raise TopologyError(
            f"{shown(sight, 'RANK')} and {shown(sight, 'PET_NODE_RANK')} must be equal: in a "
            f"PyTorchJob both are the pod's index. Probably the command or another launcher "
            f"changed one of them. Leave both as the operator set them; a launcher in the pod "
            f"sets LOCAL_RANK and LOCAL_WORLD_SIZE as well."
        )


def _require_world_size(sight: Sight, world_size: int, count: int, ranks: RanksPerNode) -> None:
    """WORLD_SIZE counts processes or pods, by release of the operator; nothing else."""
    if ranks.is_word or world_size in (count, count * ranks.count):
        return
    if sight.get("PET_NNODES") is None:
        return
    processes = count * ranks.count
    raise TopologyError(
        f"{shown(sight, 'WORLD_SIZE')} fits neither the {count} pods of "
        f"{shown(sight, 'PET_NNODES')} nor the {processes} processes with "
        f"PET_NPROC_PER_NODE={ranks.count}: it should be {count} or {processes}. Probably "
        f"the command changed one of the three. Leave them as the operator set them, and set "
        f"nprocPerNode in the job."
    )


def _master(sight: Sight, counts: str, count: int) -> Master:
    """PET_MASTER_ADDR, which torchrun reads and flags overlay; else MASTER_ADDR."""
    meeting = master(sight, prefix="PET_", default_port=_PORT)
    if meeting.host is None:
        meeting = master(sight, default_port=_PORT)
    require_master(sight, meeting.host, "RANK", counts, several=count)
    return meeting


def _left_out(sight: Sight, most: int) -> tuple[str, ...]:
    """An elastic job with a Master has one pod more than its default range."""
    if sight.get("RANK") is None:
        return ()
    return (
        f"This elastic PyTorchJob has a Master, which its default range leaves out: if "
        f"PET_NNODES ends at {most} and there are more pods, one is never let in and fails.",
    )


def _void(sight: Sight, why: str, *names: str) -> tuple[str, ...]:
    found = seen(sight, *names)
    return (f"{', '.join(found)}: {why}.",) if found else ()


def _elastic_sources(ranks: RanksPerNode, alone: bool) -> dict[str, str]:
    decides = "PET_STANDALONE" if alone else "PET_RDZV_ENDPOINT"
    return {
        **dict.fromkeys(("rank", "world_size", "node_rank", "num_nodes"), decides),
        **dict.fromkeys(("local_rank", "local_world_size", "procs_to_launch"), ranks.source),
        **dict.fromkeys(("min_nodes", "max_nodes"), "PET_STANDALONE" if alone else "PET_NNODES"),
        **dict.fromkeys(("master_addr", "master_port"), decides),
        "role_index": "host name",
    }
