"""Joining the world that mpirun made, once it is sure that it is the one which is asked for."""

import logging
from typing import Any

from trainkit.errors import DependencyError, EnvironmentFaultError, StrategyError
from trainkit.topology import Topology

__all__ = ["join_world", "leave_world"]

log = logging.getLogger(__name__)

_MPI_PLATFORMS = ("mpi", "slurm")
"""Platforms whose launcher gives ranks an MPI world. Elsewhere MPI_Init would make each process
a world of its own, or, in a shell under srun, abort it."""


def join_world(topology: Topology) -> Any:
    """A communicator of its own over all ranks of the job.

    Initialises MPI, on the calling thread, where nobody has yet. It ends with the process.

    Args:
        topology: of this rank, in a job of more than one.

    Raises:
        StrategyError: no mpirun started these ranks, or its MPI allows one thread alone.
        DependencyError: mpi4py is missing, or finds no MPI library.
        EnvironmentFaultError: MPI counts other ranks than mpirun's variables do.
    """
    if topology.platform not in _MPI_PLATFORMS:
        raise StrategyError(
            f"strategy='mpi' needs ranks that mpirun started, and these are "
            f"{topology.platform}'s ({topology.summary()}): MPI would count each as a world of "
            f"its own. Start them with `mpirun -n {topology.world_size}`, as an MPIJob with "
            f"`trainkit launch`, or use strategy='auto'."
        )
    mpi = _mpi()
    world = mpi.COMM_WORLD
    found = (world.Get_rank(), world.Get_size())
    if found != (topology.rank, topology.world_size):
        raise EnvironmentFaultError(
            f"mpirun's variables say rank {topology.rank} of {topology.world_size}, and MPI says "
            f"rank {found[0]} of {found[1]}. mpirun and mpi4py are of two MPI libraries: mpi4py "
            f"has {mpi.Get_library_version().partition(',')[0].strip()!r}. Use the mpirun of that "
            f"library, or install mpi4py for the other one."
        )
    if mpi.Query_thread() < mpi.THREAD_MULTIPLE:
        raise StrategyError(
            "strategy='mpi' calls MPI from threads beside the main one, and this MPI was "
            f"initialised at thread level {mpi.Query_thread()}, not MPI_THREAD_MULTIPLE "
            f"({mpi.THREAD_MULTIPLE}). Unset MPI4PY_RC_THREADS and MPI4PY_RC_THREAD_LEVEL, or "
            "use an MPI that is built with threads."
        )
    log.debug("%s", mpi.Get_library_version().partition("\n")[0])
    return world.Dup()


def leave_world(comm: Any) -> None:
    """Free what ``join_world`` returned: collective, so after success alone."""
    comm.Free()


def _mpi() -> Any:
    try:
        from mpi4py import MPI
    except ImportError:
        raise DependencyError(
            "strategy='mpi' needs mpi4py, which is not installed. Install \"trainkit[mpi]\", "
            "or mpi4py for the MPI library of your mpirun."
        ) from None
    except RuntimeError as reason:  # how mpi4py's wheel says that it finds no library
        raise DependencyError(
            f"mpi4py finds no MPI library ({str(reason).partition(chr(10))[0]}). Install "
            f'"trainkit[mpi]", or put the library of your mpirun on LD_LIBRARY_PATH.'
        ) from None
    return MPI
