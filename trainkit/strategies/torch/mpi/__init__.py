"""torch over MPI: a process group on mpi4py, and the strategy that trains with it."""

from trainkit.strategies.torch.mpi.strategy import Mpi

__all__ = ["Mpi"]
