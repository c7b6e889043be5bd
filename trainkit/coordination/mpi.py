"""Telling every rank of an MPI job where rank 0 listens, through MPI itself."""

import sys

from trainkit.coordination.network import own_address
from trainkit.errors import EnvironmentFaultError

__all__ = ["abort_mpi", "broadcast_address"]


def broadcast_address(port: int | None) -> tuple[str, int]:
    """Collective over MPI_COMM_WORLD: rank 0 gives its port, all get host and port.

    Args:
        port: where rank 0 listens; None on the other ranks.

    Raises:
        EnvironmentFaultError: mpi4py is missing; the message says how to give the address.
    """
    try:
        from mpi4py import MPI  # initialises MPI, which ends with the process
    except ImportError:
        raise EnvironmentFaultError(
            "mpirun gives the ranks no master address, and without mpi4py they cannot tell each "
            "other. Start with `mpirun -x MASTER_ADDR=<host of rank 0> -x MASTER_PORT=29500 …`, "
            'or install "trainkit[mpi]".'
        ) from None
    # A pod knows its own name from /etc/hosts, and no other pod does: an address is for all.
    host = None if port is None else own_address() or MPI.Get_processor_name()
    host, port = MPI.COMM_WORLD.bcast((host, port), root=0)
    return str(host), int(port)


def abort_mpi(code: int) -> None:
    """After a failure: end all ranks of an MPI job with ``code``; nothing without MPI.

    A rank that just exits waits in MPI_Finalize, which mpi4py calls at exit, for ranks that
    wait for it in a collective.
    """
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized():
        return
    if mpi.COMM_WORLD.Get_size() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        mpi.COMM_WORLD.Abort(code)
