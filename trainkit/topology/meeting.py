"""Where ranks meet: MASTER_ADDR and MASTER_PORT."""

from dataclasses import dataclass

from trainkit.errors import TopologyError
from trainkit.topology.parsing import TORCHRUN_PORT, port, seen
from trainkit.topology.sight import Sight

__all__ = ["Master", "master", "require_master"]


@dataclass(frozen=True, slots=True)
class Master:
    """Where ranks meet, and which variables say so."""

    host: str | None = None
    port: int | None = None
    host_source: str = "default"
    port_source: str = "default"


def master(sight: Sight, *, prefix: str = "", default_port: int | None = TORCHRUN_PORT) -> Master:
    """Host and port of MASTER_ADDR and MASTER_PORT; without the first there is none.

    Raises:
        TopologyError: the port is none.
    """
    host = sight.get(prefix + "MASTER_ADDR")
    number = port(sight, prefix + "MASTER_PORT")
    if host is None:
        return Master()
    if number is None:
        return Master(host, default_port, prefix + "MASTER_ADDR")
    return Master(host, number, prefix + "MASTER_ADDR", prefix + "MASTER_PORT")


def require_master(
    sight: Sight, host: str | None, *beside: str, name: str = "MASTER_ADDR", several: int
) -> None:
    """Check that several processes have a place to meet.

    Raises:
        TopologyError: there are several, and ``host`` is None.
    """
    if several > 1 and host is None:
        raise TopologyError(
            f"{name} is not set, and {', '.join(seen(sight, *beside))} asks for {several} "
            f"that train together: nothing says where they meet, and training alone would be "
            f"wrong. Set {name} to the host name of rank 0, the same in all of them."
        )
