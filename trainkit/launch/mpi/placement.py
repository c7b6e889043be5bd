"""Whether a rank stands on the host where the hostfile puts it."""

import ipaddress
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainkit.errors import EnvironmentFaultError

__all__ = ["Standing", "check_placement", "is_own_name", "short_name"]

_SELF = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a rank finds itself, by its own look and by what mpirun told it."""

    hostname: str
    """The host name that the kernel gives."""
    rank: int
    world_size: int
    local_world_size: int
    """Ranks of this job on this host."""


def check_placement(
    standing: Standing,
    hosts: Sequence[tuple[str, int]],
    world_size: int,
    *,
    is_own: Callable[[str], bool] | None = None,
) -> str:
    """The host of the hostfile that this rank stands on.

    Each rank can tell on its own, before it trains: where all hosts see no more ranks than they
    have slots, and the numbers add up, every rank stands where it should.

    Args:
        standing: of the calling rank.
        hosts: (host, slots) as the hostfile has them; a host may be there twice.
        world_size: ranks that were to be started.
        is_own: whether a name is one of this host's; asked where no host is called as this one.

    Raises:
        EnvironmentFaultError: this host is none of ``hosts``, it has more ranks than slots, or
            the world is of another size.
    """
    slots = Counter[str]()
    for host, count in hosts:
        slots[host] += count
    who = f"rank {standing.rank} on {standing.hostname}"
    found = _find(standing.hostname, list(slots), is_own or is_own_name)
    if found is None:
        listed = ", ".join(list(slots)[:8]) + (", …" * (len(slots) > 8))
        raise EnvironmentFaultError(
            f"{who}: this host is none of those that the hostfile names ({listed}). mpirun did "
            f"not use it: an mpirun around this one, a variable or an MCA file probably names "
            f"other hosts. Nothing was trained. If the hosts' names differ from their host "
            f"names on purpose, set TRAINKIT_MPI_PLACEMENT=warn."
        )
    if standing.world_size != world_size:
        raise EnvironmentFaultError(
            f"{who}: mpirun started {standing.world_size} ranks, and {world_size} were planned. "
            f"The mpirun that runs is probably not the one of the plan. Nothing was trained."
        )
    if standing.local_world_size > slots[found]:
        raise EnvironmentFaultError(
            f"{who}: {standing.local_world_size} ranks are on this host, which has {slots[found]} "
            f"slots. mpirun put ranks of other hosts here. Nothing was trained. Is there a "
            f"mapping or oversubscription in a variable or an MCA file?"
        )
    return found


def _find(hostname: str, hosts: Sequence[str], is_own: Callable[[str], bool]) -> str | None:
    """By name first: a pod's host name is its DNS name without the domain."""
    if hostname in hosts:
        return hostname
    short = [host for host in hosts if short_name(host) == short_name(hostname)]
    if len(short) == 1:
        return short[0]
    return next((host for host in short or hosts if is_own(host)), None)


def short_name(host: str) -> str:
    """A host name without its domain; an address as it is."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host.partition(".")[0].lower()
    return host


def is_own_name(host: str) -> bool:
    """Whether ``host`` resolves to an address of this host, loopback aside.

    Loopback is everybody's: only the names that can mean nothing else count.
    """
    if host in _SELF:
        return True
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(_is_own_address(family, str(address[0])) for family, *_, address in found)


def _is_own_address(family: int, address: str) -> bool:
    if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return False
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
