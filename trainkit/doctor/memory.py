"""The memory limit against what ranks and the checkpoints' arena take."""

from __future__ import annotations

from collections.abc import Iterator

from trainkit.doctor.finding import Finding, Question, Status
from trainkit.doctor.job import ranks_here, topology_or_none
from trainkit.doctor.sizes import size
from trainkit.resources.memory import memory_left, memory_limit

__all__ = ["check", "judge"]

_RANK = 1 << 30
"""Bytes that a rank takes before it holds any data: a framework and its libraries."""


def check(question: Question) -> Iterator[Finding]:
    """Compare what is left with what is needed, as far as that is known."""
    ranks = ranks_here()
    topology = topology_or_none()
    world = topology.world_size if topology is not None else None
    share = None
    if question.state_size is not None:
        # A save is divided over all ranks; each keeps its part in memory until it is written.
        share = question.state_size * ranks // max(world or ranks, ranks)
    yield judge(memory_limit(), memory_left(), ranks, share)


def judge(
    limit: tuple[int, str] | None, left: int | None, ranks: int, arena: int | None
) -> Finding:
    """What the memory that is left means.

    Args:
        limit: bytes, and what limits them.
        left: bytes that may still be taken.
        ranks: of this host.
        arena: bytes of a checkpoint that this host's ranks hold, if that is known.
    """
    if left is None:
        return Finding("memory", Status.NOT_CHECKED, "nothing tells how much memory is left")
    most, source = limit or (None, "nothing")
    need = ranks * _RANK + (arena or 0)
    found = f"{size(left)} left"
    if most is not None:
        found += f" of {size(most)} by {source}"
    found += f", {ranks} rank(s) here"
    values = {"limit": most, "source": source, "left": left, "ranks": ranks, "arena": arena}
    values["need"] = need
    grant = f"Raise the pod's memory limit by at least {size(need - left)}"
    if arena is not None and left < arena:
        return Finding(
            "memory",
            Status.BROKEN,
            f"{found}, and a save holds {size(arena)} on this host",
            f"{grant}: a save would end the ranks (exit code 137).",
            values,
        )
    if left < need:
        what = f"{ranks} rank(s) of about {size(_RANK)}" + (
            f" and {size(arena)} of a checkpoint" if arena else ""
        )
        return Finding("memory", Status.WARNING, f"{found}: little for {what}", f"{grant}.", values)
    return Finding("memory", Status.OK, found, values=values)
