"""Who this process is in its job, as the launchers' variables have it."""

from __future__ import annotations

from collections.abc import Iterator

from trainkit.doctor.finding import Finding, Question, Status
from trainkit.errors import TopologyError
from trainkit.topology import Topology, detect

__all__ = ["check", "ranks_here", "topology_or_none"]


def check(question: Question) -> Iterator[Finding]:
    """Detect the topology; its notes are warnings."""
    del question
    try:
        topology = detect()
    except TopologyError as error:
        yield Finding("topology", Status.BROKEN, str(error), "`trainkit env --explain` shows more.")
        return
    yield Finding("topology", Status.OK, topology.summary(), values=topology.to_json())
    for note in topology.notes:
        advice = "`trainkit env --explain` names the variable that decided."
        yield Finding("topology-note", Status.WARNING, note, advice)


def topology_or_none() -> Topology | None:
    """The topology; None where it cannot be made out, which ``check`` tells."""
    try:
        return detect()
    except TopologyError:
        return None


def ranks_here() -> int:
    """Ranks that train on this host, at least 1."""
    topology = topology_or_none()
    if topology is None:
        return 1
    ranks = topology.local_world_size
    if topology.platform == "local":  # a bare `python` starts a rank a GPU
        from trainkit.resources.gpus import visible_gpu_count

        ranks = max(ranks, visible_gpu_count())
    return max(1, ranks)
