"""What may be chosen of a process group over MPI."""

from dataclasses import dataclass

__all__ = ["MpiOptions"]


@dataclass(frozen=True, slots=True)
class MpiOptions:
    """How a group communicates."""

    timeout: float = 600.0
    """Seconds that a rank may be late."""
    shared_memory: bool = True
    """Ranks of a host reduce through shared memory."""
    ranks_per_host: int | None = None
    """Take so many ranks in a row for those of one host; unset: MPI knows."""
    cuda_aware: bool = False
    """MPI reads device memory."""
