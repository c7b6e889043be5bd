"""Pods of an MPI job outside of mpirun: the launcher, and workers that wait for it."""

from collections.abc import Mapping

from trainkit.errors import TopologyError
from trainkit.topology.hosts import parse_hostfile
from trainkit.topology.parsing import integer, missing, name_index, seen, shown
from trainkit.topology.sight import Sight
from trainkit.topology.topology import Role, Topology

__all__ = ["MpiJob", "awaited_hostfile"]

# Hostfile of each MPI → the variable with the slots of a host that the file gives no count
# (mpi-operator 0.3 wrote none). Other OMPI_MCA_* names mark no launcher: Slurm's pmix plug-in
# sets one in every task.
_HOSTFILES = {
    "OMPI_MCA_orte_default_hostfile": "OMPI_MCA_orte_set_default_slots",
    "I_MPI_HYDRA_HOST_FILE": "I_MPI_PERHOST",
    "HYDRA_HOST_FILE": "",
    "PRTE_MCA_prte_default_hostfile": "OMPI_MCA_orte_set_default_slots",
}
_RANKS = ("TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMI_RANK")
"""Ranks inherit the launcher's variables, also in its own pod."""


class MpiJob:
    """MPIJob v1 and v2beta1, and a TrainJob with an MPI policy.

    Asked after the platforms whose ranks mpirun starts, since Hydra and Open MPI carry the
    launcher's variables to ranks on other hosts. A worker pod has no hostfile, no slots and
    no world size.
    """

    name = "mpi"

    def detect(self, sight: Sight) -> bool:
        return _hostfile(sight) is not None or sight.get("K_MPI_JOB_ROLE") == "worker"

    def topology(self, sight: Sight) -> Topology:
        variable = _hostfile(sight)
        if sight.get("K_MPI_JOB_ROLE") == "worker" and (
            variable is None or sight.read(sight.get(variable) or "") is None
        ):
            return self._worker(sight)
        if variable is None:
            raise missing(sight, next(iter(_HOSTFILES)), "K_MPI_JOB_ROLE", "TRAINKIT_PLATFORM")
        return self._launcher(sight, variable)

    def _launcher(self, sight: Sight, variable: str) -> Topology:
        path = sight.get(variable) or ""
        hosts = _hosts(sight, variable, path)
        notes: tuple[str, ...] = ()
        if variable.startswith("OMPI_MCA_orte_") and not sight.get(
            "PRTE_MCA_prte_default_hostfile"
        ):
            notes = (
                f"Open MPI 5 does not read {variable}: its mpirun starts ranks in this pod "
                f"alone, unless it is given --hostfile {path}.",
            )
        return Topology(
            platform=self.name,
            role=Role.LAUNCHER,
            rank=None,
            world_size=sum(slots for _, slots in hosts),
            local_rank=None,
            local_world_size=0,
            node_rank=None,
            num_nodes=len(hosts),
            hosts=hosts,
            notes=notes,
            sources={
                "role": variable,
                "rank": variable,
                "local_rank": variable,
                "local_world_size": variable,
                "node_rank": variable,
                "world_size": path,
                "num_nodes": path,
                "hosts": path,
                "procs_to_launch": variable,
            },
        )

    def _worker(self, sight: Sight) -> Topology:
        found = name_index(sight.hostname, "worker")
        return Topology(
            platform=self.name,
            role=Role.WORKER,
            role_index=found[1] if found else None,
            rank=None,
            world_size=None,
            local_rank=None,
            local_world_size=0,
            node_rank=None,
            num_nodes=None,
            notes=(
                "This is a worker pod of an MPIJob outside of mpirun: the launcher pod starts "
                "the ranks here, over ssh.",
            ),
            sources={
                **dict.fromkeys(("role", "rank", "world_size", "local_rank"), "K_MPI_JOB_ROLE"),
                **dict.fromkeys(("local_world_size", "node_rank", "num_nodes"), "K_MPI_JOB_ROLE"),
                "role_index": "host name",
            },
        )


def awaited_hostfile(environ: Mapping[str, str]) -> str | None:
    """The hostfile that an MPI launcher cannot do without; None in any other process.

    Args:
        environ: of the process.
    """
    if environ.get("K_MPI_JOB_ROLE") == "worker" or any(environ.get(name) for name in _RANKS):
        return None
    return next((environ[name] for name in _HOSTFILES if environ.get(name)), None)


def _hostfile(sight: Sight) -> str | None:
    """The variable that names a hostfile."""
    return next((name for name in _HOSTFILES if sight.get(name) is not None), None)


def _hosts(sight: Sight, variable: str, path: str) -> list[tuple[str, int]]:
    text = sight.read(path)
    if text is None:
        raise TopologyError(
            f"{shown(sight, variable)} names a hostfile, and {path} cannot be read. The job's "
            f"ConfigMap probably did not reach this pod, or a volume of its own hides the "
            f"folder. Mount it, or remove {variable} if this is no launcher."
        )
    try:
        hosts = parse_hostfile(text)
    except ValueError as reason:
        raise TopologyError(
            f"{path} ({variable}), {reason}. Somebody probably wrote the file by hand. Expected "
            f"lines such as 'host slots=2' or 'host:2'."
        ) from None
    if not hosts:
        role = ", ".join(seen(sight, variable, "K_MPI_JOB_ROLE"))
        raise TopologyError(
            f"{path} names no host ({role}). The job probably has no workers. Set the replicas "
            f"of its workers, or let the launcher be a worker too."
        )
    default = 1
    if any(slots is None for _, slots in hosts):
        default = integer(sight, _HOSTFILES[variable], least=1) or 1
    return [(host, default if slots is None else slots) for host, slots in hosts]
