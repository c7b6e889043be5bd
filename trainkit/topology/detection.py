"""Ask each platform in turn whether it made what this process sees."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib import import_module

from trainkit import config
from trainkit.errors import TopologyError, TrainkitError
from trainkit.topology.environment import ClusterEnvironment
from trainkit.topology.plugins import plugged_in, skip
from trainkit.topology.sight import Sight
from trainkit.topology.topology import Topology

__all__ = ["detect", "known_environments"]

# Module and class of each platform, and variables of which one must be set before it is worth
# importing and asking; none for the last. The order is that of asking.
_Row = tuple[str, str, tuple[str, ...]]

# Launchers start ranks inside pods, and overwrite or outlive what the pod had: the innermost
# is asked first.
_LAUNCHERS: tuple[_Row, ...] = (
    ("servers", "Servers", ("TRAINKIT_PS_INDEX",)),
    ("torchelastic", "TorchElastic", ("TORCHELASTIC_RUN_ID",)),
    ("mpi", "Mpi", ("OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMI_RANK", "PMI_ID")),
    ("slurm", "Slurm", ("SLURM_STEP_ID",)),
)

# Those with marks of their own come before those that share names with others.
_PLATFORMS: tuple[_Row, ...] = (
    ("tfjob", "TFJob", ("TF_CONFIG",)),
    ("mxjob", "MXJob", ("MX_CONFIG",)),
    ("paddlejob", "PaddleJob", ("PADDLE_MASTER",)),
    ("jaxjob", "JaxJob", ("COORDINATOR_ADDRESS", "NUM_PROCESSES")),
    ("pytorchjob", "PyTorchJob", ("PET_NNODES", "PET_RDZV_ENDPOINT")),
    ("trainjob", "TrainJob", ("PET_NNODES", "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES")),
    ("trainjob", "TrainJob", ("DMLC_TRACKER_URI",)),
    ("xgboostjob", "XGBoostJob", ("WORKER_ADDRS",)),
    (
        "mpijob",
        "MpiJob",
        (
            "OMPI_MCA_orte_default_hostfile",
            "PRTE_MCA_prte_default_hostfile",
            "I_MPI_HYDRA_HOST_FILE",
            "HYDRA_HOST_FILE",
            "K_MPI_JOB_ROLE",
        ),
    ),
    ("variables", "Variables", ("RANK", "WORLD_SIZE")),
    ("indexed_job", "JobSet", ("JOB_COMPLETION_INDEX",)),
    ("indexed_job", "IndexedJob", ("JOB_COMPLETION_INDEX",)),
    ("local", "Local", ()),
)

# These speak of single processes: whoever chooses one means it, also within another launcher.
_NOT_PODS = ("torchelastic", "mpi", "slurm", "env", "local")


def detect(sight: Sight | None = None) -> Topology:
    """Find out where this process stands, whatever started it.

    TRAINKIT_PLATFORM names the platform, and then no other is asked. Else the first match
    wins: launchers, then plug-ins of other packages, then the operators' pods.

    Args:
        sight: what is seen; this process's environment, files and devices by default.

    Raises:
        TopologyError: variables are missing, malformed or contradict each other; the message
            names them, their values, the likely cause and what to do.
    """
    if sight is None:
        sight = Sight.here()
    name = _chosen(sight)
    if name is not None:
        return _as_chosen(sight, name)
    for environment, mark in _matching(sight, _LAUNCHERS):
        return _found_by(mark, environment.topology(sight))
    for environment in _matching_plugins(sight):
        return _found_by(f"plug-in {environment.name}", _of_plugin(environment, sight))
    environment, mark = next(_matching(sight, _PLATFORMS))
    return _found_by(mark, environment.topology(sight))


def known_environments() -> list[ClusterEnvironment]:
    """Our own environments, in the order of asking."""
    return [_make(row) for row in dict.fromkeys((*_LAUNCHERS, *_PLATFORMS))]


def _make(row: _Row) -> ClusterEnvironment:
    module, name, _ = row
    found: type[ClusterEnvironment] = getattr(
        import_module(f"trainkit.topology.environments.{module}"), name
    )
    return found()


def _matching(sight: Sight, rows: Iterable[_Row]) -> Iterator[tuple[ClusterEnvironment, str]]:
    """Environments that recognise what is seen, each with the variable that led to it."""
    for row in rows:
        marks = row[2]
        seen = next((mark for mark in marks if sight.get(mark) is not None), None)
        if seen is not None or not marks:
            environment = _make(row)
            if environment.detect(sight):
                yield environment, seen or "default"


def _found_by(source: str, topology: Topology) -> Topology:
    return replace(topology, sources={"platform": source, **topology.sources})


def _chosen(sight: Sight) -> str | None:
    """What TRAINKIT_PLATFORM says."""
    variable = "TRAINKIT_PLATFORM"
    value = sight.environ.get(variable)
    if value is None:
        return None
    chosen = config.settings({variable: value}).platform
    return None if chosen is None else chosen.lower()


def _as_chosen(sight: Sight, name: str) -> Topology:
    known = known_environments()
    named = [environment for environment in known if environment.name == name]
    if not named:
        plugins = list(plugged_in())
        known += plugins
        named = [environment for environment in plugins if environment.name.lower() == name]
    if not named:
        names = sorted({environment.name for environment in known})
        raise TopologyError(
            f"TRAINKIT_PLATFORM={name!r} is no known platform. Known are {', '.join(names)}. "
            f"Correct it, or remove it for detection."
        )
    if name not in _NOT_PODS:
        # A rank inherits TRAINKIT_PLATFORM from its pod, and must not start ranks once more.
        for launcher, mark in _matching(sight, _LAUNCHERS[:2]):
            inner = _found_by(mark, launcher.topology(sight))
            unused = f"TRAINKIT_PLATFORM={name!r}: of the pod, and this is a rank in it."
            return replace(inner, unused=(*inner.unused, unused))
    # mpi has two: ranks, and pods that are none.
    chosen = next((environment for environment in named if environment.detect(sight)), named[0])
    return _found_by("TRAINKIT_PLATFORM", chosen.topology(sight))


def _matching_plugins(sight: Sight) -> Iterator[ClusterEnvironment]:
    for environment in plugged_in():
        try:
            matches = environment.detect(sight)
        except Exception as reason:
            skip(environment.name, reason)
            continue
        if matches:
            yield environment


def _of_plugin(environment: ClusterEnvironment, sight: Sight) -> Topology:
    try:
        return environment.topology(sight)
    except TrainkitError:
        raise
    except Exception as reason:
        # It knows this platform, so training alone instead would be wrong.
        raise TopologyError(
            f"the environment plug-in {environment.name!r} recognised this platform and failed: "
            f"{reason!r}. Correct or remove the plug-in, or choose with TRAINKIT_PLATFORM."
        ) from reason
