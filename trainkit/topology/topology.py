"""The answer to "who am I": one frozen record, whatever started the process."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from types import MappingProxyType

TYPE_CHECKING = False  # typing itself is a tenth of what `trainkit env` imports
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Role", "Topology"]


class Role(StrEnum):
    """What a process is for."""

    CHIEF = "chief"
    WORKER = "worker"
    PS = "ps"
    EVALUATOR = "evaluator"
    LAUNCHER = "launcher"


_NOTHING: MappingProxyType[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Where this process stands among those that train together.

    Where this process must still start ranks (``starts_ranks``), ``rank`` is the first of
    them and ``local_rank`` says nothing.
    """

    platform: str
    """Name of the environment that decided: ``pytorchjob``, ``torchelastic``, ``local`` …"""
    role: Role = Role.WORKER
    """What this process is for."""
    role_index: int | None = None
    """Index of this process within its role, as the operator counts it."""
    rank: int | None = 0
    """Rank of the training process; None for ps, evaluator, launcher, or before an elastic
    rendezvous has decided it."""
    world_size: int | None = 1
    """Training processes in the whole job; None before an elastic rendezvous."""
    local_rank: int | None = 0
    """Rank within this pod or host."""
    local_world_size: int = 1
    """Training processes of this pod or host; 0 in one that does not train."""
    node_rank: int | None = 0
    """Index of this pod or host among those that train; None where it cannot be known."""
    num_nodes: int | None = 1
    """Pods or hosts that train; ps and evaluators do not count."""
    master_addr: str | None = None
    """Host name or address where ranks meet."""
    master_port: int | None = None
    """TCP port where ranks meet."""
    procs_to_launch: int = 0
    """Ranks that this process must still start: 0 when it is itself a rank."""
    min_nodes: int | None = None
    """Lower end of an elastic range of nodes."""
    max_nodes: int | None = None
    """Upper end of an elastic range of nodes."""
    restart_count: int = 0
    """Restarts that the launcher counted."""
    cluster: dict[str, list[str]] | None = None
    """TensorFlow-like: role → addresses; the evaluator is not part of it."""
    hosts: list[tuple[str, int]] | None = None
    """MPI launcher: (host, slots) in the hostfile's order."""
    notes: tuple[str, ...] = ()
    """What deserves a warning; one sentence each."""
    unused: tuple[str, ...] = ()
    """What was seen, such as leftovers of an outer launcher, and did not count; one sentence
    each. Not a warning: for ``trainkit env --explain`` and the debug log."""
    sources: MappingProxyType[str, str] | dict[str, str] = field(default_factory=lambda: _NOTHING)
    """Field → the variable or file that decided it."""

    @property
    def is_chief(self) -> bool:
        """Whether this process speaks for the job: rank 0, started or still to be started."""
        return self.rank == 0

    @property
    def starts_ranks(self) -> bool:
        """Whether this process stands for ranks that it must still start."""
        return self.procs_to_launch > 0

    @property
    def runs_mpirun(self) -> bool:
        """Whether this process is to start the ranks through ``mpirun``."""
        return self.role is Role.LAUNCHER

    @property
    def awaits_mpirun(self) -> bool:
        """Whether this pod only waits for an ``mpirun`` of another pod to start ranks in it."""
        return self.platform == "mpi" and self.role is Role.WORKER and self.rank is None

    @property
    def is_elastic(self) -> bool:
        """Whether the number of nodes may change while the job runs."""
        return self.min_nodes != self.max_nodes

    def alone(self) -> Topology:
        """The same process as a job of one rank: for an evaluator, which trains with nobody."""
        return replace(
            self, rank=0, world_size=1, local_rank=0, local_world_size=1, procs_to_launch=0
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values, without ``notes``, ``unused`` and ``sources``."""
        values = {}
        for spec in fields(self):
            if spec.name in ("notes", "unused", "sources"):
                continue
            value = getattr(self, spec.name)
            if spec.name == "hosts" and value is not None:
                value = [list(pair) for pair in value]
            values[spec.name] = str(value) if isinstance(value, Role) else value
        return values

    def label(self) -> str:
        """This pod or process in a few characters, such as ``worker-1``."""
        index = self.node_rank if self.role_index is None else self.role_index
        return f"{self.role}-{index or 0}"

    def summary(self) -> str:
        """One line for the log, such as ``pytorchjob worker 1 · rank 2 of 4 · …``."""
        index = "" if self.role_index is None else f" {self.role_index}"
        parts = [f"{self.platform} {self.role}{index}"]
        if self.starts_ranks:
            first = self.rank
            span = "" if first is None else f" {first}–{first + self.procs_to_launch - 1}"
            world = self.world_size or "an elastic world"
            parts.append(f"starts {self.procs_to_launch} ranks{span} of {world}")
        elif self.rank is not None:
            parts.append(f"rank {self.rank} of {self.world_size}")
        if self.is_elastic:
            parts.append(f"{self.min_nodes} to {self.max_nodes} nodes")
        elif self.num_nodes is not None and self.num_nodes > 1:
            node = "?" if self.node_rank is None else self.node_rank
            parts.append(f"node {node} of {self.num_nodes}")
        if self.master_addr is not None:
            port = "" if self.master_port is None else f":{self.master_port}"
            parts.append(f"master {self.master_addr}{port}")
        return " · ".join(parts)
