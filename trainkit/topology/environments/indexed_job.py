"""A pod of an Indexed Job or JobSet whose author says how many train together."""

import re

from trainkit import config
from trainkit.errors import TopologyError, UsageError
from trainkit.topology.meeting import master, require_master
from trainkit.topology.nodes import RanksPerNode, gpu_notes, node, ranks_per_node
from trainkit.topology.parsing import require_below, required_integer, shown
from trainkit.topology.sight import Sight
from trainkit.topology.topology import Role, Topology

__all__ = ["IndexedJob", "JobSet"]

_INDEX = "JOB_COMPLETION_INDEX"
_NODES = "TRAINKIT_NUM_NODES"


class IndexedJob:
    """Kubernetes gives the index alone; WORLD_SIZE or TRAINKIT_NUM_NODES is the author's.

    WORLD_SIZE alone counts pods of one rank; TRAINKIT_NUM_NODES alone counts pods, with a
    rank per visible GPU; both give the ranks a pod. The subdomain is not in the environment,
    so MASTER_ADDR cannot be guessed.
    """

    name = "indexed-job"

    def detect(self, sight: Sight) -> bool:
        has_size = sight.get("WORLD_SIZE") is not None or sight.get(_NODES) is not None
        return sight.get(_INDEX) is not None and has_size

    def topology(self, sight: Sight) -> Topology:
        index = required_integer(sight, _INDEX, "WORLD_SIZE", _NODES, "TRAINKIT_PLATFORM")
        nodes = _num_nodes(sight)
        if nodes is None:
            count, source = required_integer(sight, "WORLD_SIZE", _INDEX, least=1), "WORLD_SIZE"
            ranks = ranks_per_node(sight, "PET_NPROC_PER_NODE")
            notes = gpu_notes(sight, 1) if ranks.source == "default" else ()
        else:
            count, source, notes = nodes, _NODES, ()
            ranks = _ranks(sight, nodes)
        require_below(sight, _INDEX, index, source, count)
        meeting = master(sight)
        require_master(sight, meeting.host, _INDEX, "WORLD_SIZE", _NODES, several=count)
        return node(
            self.name,
            index=(index, _INDEX),
            count=(count, source),
            ranks=ranks,
            master=meeting,
            role=(Role.WORKER, index),
            notes=notes,
        )


class JobSet(IndexedJob):
    """The same variables: JobSet adds none. Only the form of the names tells it apart."""

    name = "jobset"

    def detect(self, sight: Sight) -> bool:
        # <jobset>-<replicated job>-<job index>-<pod index>.<subdomain, by default the jobset>
        found = re.match(r"([^.]+)\.([^.]+)", sight.get("MASTER_ADDR") or "")
        return (
            super().detect(sight)
            and found is not None
            and re.fullmatch(rf"{re.escape(found[2])}-.+-[0-9]+-[0-9]+", found[1]) is not None
        )


def _num_nodes(sight: Sight) -> int | None:
    """TRAINKIT_NUM_NODES, read by the table of settings."""
    value = sight.environ.get(_NODES)
    if value is None:
        return None
    try:
        return config.settings({_NODES: value}).num_nodes
    except UsageError as reason:
        raise TopologyError(str(reason)) from None


def _ranks(sight: Sight, nodes: int) -> RanksPerNode:
    """Ranks of each pod where the number of pods is known."""
    asked = ranks_per_node(sight, "PET_NPROC_PER_NODE")
    if sight.get("WORLD_SIZE") is None:
        if asked.source != "default":
            return asked
        return RanksPerNode(max(1, sight.gpus()), "visible GPUs")
    size = required_integer(sight, "WORLD_SIZE", _INDEX, least=1)
    each = size // nodes
    if size % nodes or (asked.source != "default" and asked.count != each):
        beside = "" if asked.source == "default" else f" with {shown(sight, asked.source)}"
        raise TopologyError(
            f"{shown(sight, 'WORLD_SIZE')} cannot be split evenly over {shown(sight, _NODES)} "
            f"pods{beside}. WORLD_SIZE counts ranks where both are set. Correct one of them, or "
            f"leave WORLD_SIZE out for one rank per visible GPU."
        )
    return RanksPerNode(each, f"WORLD_SIZE / {_NODES}", notes=gpu_notes(sight, each))
