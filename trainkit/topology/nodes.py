"""A pod or host that stands for several ranks: how many, and which."""

from dataclasses import dataclass

from trainkit.errors import TopologyError
from trainkit.topology.meeting import Master
from trainkit.topology.parsing import integer, malformed, shown
from trainkit.topology.sight import Sight
from trainkit.topology.topology import Role, Topology

__all__ = ["RanksPerNode", "gpu_notes", "node", "ranks_per_node", "standalone"]


@dataclass(frozen=True, slots=True)
class RanksPerNode:
    """How many ranks this pod or host stands for."""

    count: int = 1
    source: str = "default"
    """The variable that decided."""
    is_word: bool = False
    """Whether it was auto, gpu or cpu, which no operator can have multiplied with."""
    notes: tuple[str, ...] = ()


def ranks_per_node(sight: Sight, *names: str) -> RanksPerNode:
    """Ranks of this pod by the first of ``names`` that is set: a number, auto, gpu or cpu.

    Without any it is one, as for torchrun. Unlike torchrun, ``auto`` is one rank where there
    is no GPU: it would start one per CPU of the *host*, which is never what was meant, and
    ``cpu`` counts the CPUs that this pod may use.

    Raises:
        TopologyError: it is no positive number and none of these words, or ``gpu`` in a pod
            without GPUs.
    """
    name = next((name for name in names if sight.get(name) is not None), None)
    if name is None:
        return RanksPerNode()
    word = sight.get(name)
    if word not in ("auto", "gpu", "cpu"):
        try:
            count = integer(sight, name, least=1)
        except TopologyError:
            raise malformed(sight, name, "a positive number, auto, gpu or cpu") from None
        return RanksPerNode(count or 1, name, notes=gpu_notes(sight, count or 1))
    if word == "cpu":
        return _one_per_cpu(sight, name)
    gpus = sight.gpus()
    if gpus:
        return RanksPerNode(gpus, name, is_word=True)
    if word == "gpu":
        raise TopologyError(
            f"{shown(sight, name)} asks for one process per GPU, and no GPU is visible here. "
            f"The pod probably asks for no GPU, the driver is missing, or CUDA_VISIBLE_DEVICES "
            f"hides them. Request GPUs, or set {name} to a number, or to auto for one process "
            f"without GPU."
        )
    limit = sight.cpu_limit()
    cpus = "" if limit is None else f" ({limit[0]:g} by {limit[1]})"
    return RanksPerNode(
        1,
        name,
        is_word=True,
        notes=(
            f"{name}=auto and no visible GPU: 1 process, and not one per CPU{cpus}; set {name} "
            f"to a number for more.",
        ),
    )


def _one_per_cpu(sight: Sight, name: str) -> RanksPerNode:
    limit = sight.cpu_limit()
    if limit is None:
        note = f"{name}=cpu: how many CPUs there are is not known here, 1 is taken."
        return RanksPerNode(1, name, is_word=True, notes=(note,))
    count = max(1, int(limit[0]))
    note = f"{name}=cpu: {count}, the limit set by {limit[1]}."
    return RanksPerNode(count, name, is_word=True, notes=(note,))


def gpu_notes(sight: Sight, ranks: int) -> tuple[str, ...]:
    """What to warn of where GPUs and ranks of a pod are not equally many."""
    gpus = sight.gpus()
    if gpus > ranks:
        noun = "rank" if ranks == 1 else "ranks"
        return (
            f"{gpus} GPUs are visible to a pod of {ranks} {noun}: {gpus - ranks} of them stay "
            f"idle if each rank uses one.",
        )
    if 0 < gpus < ranks:
        return (f"{ranks} ranks are to share {gpus} visible GPUs.",)
    return ()


def standalone(sight: Sight) -> bool:
    """Whether PET_STANDALONE asks for a job of this node alone.

    PyTorchJob sets it to the empty string and means yes: here alone, empty is not unset.

    Raises:
        TopologyError: the value means neither yes nor no.
    """
    value = sight.environ.get("PET_STANDALONE")
    if value is None:
        return False
    word = value.strip().lower()
    if word in ("", "1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise malformed(sight, "PET_STANDALONE", "1, 0, or the empty string, which means 1")


def node(
    platform: str,
    *,
    index: tuple[int, str],
    count: tuple[int, str],
    ranks: RanksPerNode,
    master: Master,
    role: tuple[Role, int | None] = (Role.WORKER, None),
    notes: tuple[str, ...] = (),
    unused: tuple[str, ...] = (),
) -> Topology:
    """The topology of one node among equal ones.

    A node of one rank *is* that rank; a node of several still has to start them.

    Args:
        platform: name of the environment.
        index: this node's index, and the variable that says so.
        count: number of nodes, and the variable that says so.
        ranks: ranks of each node.
        master: where ranks meet.
        role: role, and index in it.
        notes: what deserves a warning, besides what ``ranks`` says.
        unused: what did not count.
    """
    several = ranks.count > 1
    per_node = f" × {ranks.source}" if several else ""
    sources = {
        "rank": index[1] + per_node,
        "world_size": count[1] + per_node,
        "local_rank": ranks.source,
        "local_world_size": ranks.source,
        "node_rank": index[1],
        "num_nodes": count[1],
        "procs_to_launch": ranks.source,
        "role": index[1],
        "role_index": index[1],
        "master_addr": master.host_source,
        "master_port": master.port_source,
    }
    return Topology(
        platform=platform,
        role=role[0],
        role_index=role[1],
        rank=index[0] * ranks.count,
        world_size=count[0] * ranks.count,
        local_rank=None if several else 0,
        local_world_size=ranks.count,
        node_rank=index[0],
        num_nodes=count[0],
        master_addr=master.host,
        master_port=master.port,
        procs_to_launch=ranks.count if several else 0,
        notes=ranks.notes + notes,
        unused=unused,
        sources=sources,
    )
