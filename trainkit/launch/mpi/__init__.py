"""The launcher pod of an MPI job: mpirun's command line, the way to the hosts, and the check.

`plan_mpirun` says what to run, `await_hosts` waits until it can work, and each rank begins with
`check_placement`.
"""

from trainkit.launch.mpi.hosts import await_hosts, remove_files
from trainkit.launch.mpi.placement import check_placement
from trainkit.launch.mpi.plan import Mpirun, plan_mpirun
from trainkit.launch.mpi.tools import MpiTools

__all__ = [
    "MpiTools",
    "Mpirun",
    "await_hosts",
    "check_placement",
    "plan_mpirun",
    "remove_files",
]
