from tests.strategies.mpi.conftest import mpirun

__all__ = ["mpirun"]
