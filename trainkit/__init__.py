"""trainkit: the runtime inside the container of a distributed training job.

``import trainkit`` loads no framework; the names below are looked up when first used.
"""

from importlib import import_module

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from trainkit.checkpoint import CheckpointManager as CheckpointManager
    from trainkit.errors import ExitCode as ExitCode
    from trainkit.errors import Preempted as Preempted
    from trainkit.errors import TrainkitError as TrainkitError
    from trainkit.runtime import Context as Context
    from trainkit.runtime import init as init
    from trainkit.runtime import run as run
    from trainkit.state import PerRank as PerRank
    from trainkit.state import Pickled as Pickled
    from trainkit.state import Progress as Progress
    from trainkit.state import Stateful as Stateful
    from trainkit.topology import Role as Role
    from trainkit.topology import Topology as Topology
    from trainkit.topology import detect as detect

_HOMES = {
    "CheckpointManager": "trainkit.checkpoint",
    "Context": "trainkit.runtime",
    "ExitCode": "trainkit.errors",
    "PerRank": "trainkit.state",
    "Pickled": "trainkit.state",
    "Preempted": "trainkit.errors",
    "Progress": "trainkit.state",
    "Role": "trainkit.topology",
    "Stateful": "trainkit.state",
    "Topology": "trainkit.topology",
    "TrainkitError": "trainkit.errors",
    "detect": "trainkit.topology",
    "init": "trainkit.runtime",
    "run": "trainkit.runtime",
}

__all__ = sorted([*_HOMES, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> "Any":
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'trainkit' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
