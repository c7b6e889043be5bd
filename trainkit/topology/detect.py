"""Ask each platform in turn whether it made what this process sees."""

import logging
from collections.abc import Iterator
from dataclasses import replace

from trainkit import config
from trainkit.errors import TopologyError, TrainkitError
from trainkit.topology.environment import ClusterEnvironment
from trainkit.topology.environments.indexed_job import IndexedJob, JobSet
from trainkit.topology.environments.jaxjob import JaxJob
from trainkit.topology.environments.local import Local
from trainkit.topology.environments.mpi import Mpi
from trainkit.topology.environments.mpijob import MpiJob
from trainkit.topology.environments.mxjob import MXJob
from trainkit.topology.environments.paddlejob import PaddleJob
from trainkit.topology.environments.pytorchjob import PyTorchJob
from trainkit.topology.environments.slurm import Slurm
from trainkit.topology.environments.tfjob import TFJob
from trainkit.topology.environments.torchelastic import TorchElastic
from trainkit.topology.environments.trainjob import TrainJob
from trainkit.topology.environments.variables import Variables
from trainkit.topology.environments.xgboostjob import XGBoostJob
from trainkit.topology.plugins import plugged_in
from trainkit.topology.sight import Sight
from trainkit.topology.topology import Topology

__all__ = ["detect"]

log = logging.getLogger(__name__)

# Launchers start ranks inside pods, and overwrite or outlive what the pod had: the innermost
# is asked first.
_LAUNCHERS: tuple[ClusterEnvironment, ...] = (TorchElastic(), Mpi(), Slurm())

# Those with marks of their own come before those that share names with others.
_PLATFORMS: tuple[ClusterEnvironment, ...] = (
    TFJob(),
    MXJob(),
    PaddleJob(),
    JaxJob(),
    PyTorchJob(),
    TrainJob(),
    XGBoostJob(),
    MpiJob(),
    Variables(),
    JobSet(),
    IndexedJob(),
    Local(),
)


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
    for environment in _LAUNCHERS:
        if environment.detect(sight):
            return environment.topology(sight)
    for environment in _matching_plugins(sight):
        return _of_plugin(environment, sight)
    return next(e for e in _PLATFORMS if e.detect(sight)).topology(sight)


def _chosen(sight: Sight) -> str | None:
    """What TRAINKIT_PLATFORM says."""
    variable = "TRAINKIT_PLATFORM"
    value = sight.environ.get(variable)
    if value is None:
        return None
    chosen = config.settings({variable: value}).platform
    return None if chosen is None else chosen.lower()


def _as_chosen(sight: Sight, name: str) -> Topology:
    known = [*_LAUNCHERS, *_PLATFORMS]
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
    # mpi has two: ranks, and pods that are none.
    chosen = next((environment for environment in named if environment.detect(sight)), named[0])
    topology = chosen.topology(sight)
    if topology.starts_ranks:
        # A rank inherits TRAINKIT_PLATFORM from its pod, and must not start ranks once more.
        for launcher in _LAUNCHERS[:2]:
            if launcher.detect(sight):
                unused = f"TRAINKIT_PLATFORM={name!r}: of the pod, and this is a rank in it."
                topology = launcher.topology(sight)
                return replace(topology, unused=(*topology.unused, unused))
    return replace(topology, sources={**topology.sources, "platform": "TRAINKIT_PLATFORM"})


def _matching_plugins(sight: Sight) -> Iterator[ClusterEnvironment]:
    for environment in plugged_in():
        try:
            matches = environment.detect(sight)
        except Exception as reason:
            log.warning("environment plug-in %s is skipped: %r", environment.name, reason)
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
