"""Reaching another host: names that appear late, ports that open late, the right interface."""

import ipaddress
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from trainkit.errors import EnvironmentFaultError
from trainkit.waiting import Deadline, backoff, wait_until

__all__ = [
    "await_address",
    "default_interface",
    "interface_towards",
    "own_address",
    "own_address_is_loopback",
    "port_holder",
    "port_not_served",
]


def await_address(host: str, port: int, *, who: str, deadline: Deadline) -> None:
    """Wait until ``host`` resolves and something listens on ``port``.

    Args:
        host: DNS name or address; a Kubernetes name may appear after its pod.
        port: TCP port.
        who: the waiting process, for messages.
        deadline: when to give up.

    Raises:
        DeadlineError: names host and port, and the last thing that went wrong.
    """
    last = "not tried yet"
    refused = False

    def reachable() -> bool:
        nonlocal last, refused
        refused = False
        try:
            with socket.create_connection((host, port), timeout=min(5.0, deadline.left + 0.1)):
                return True
        except (socket.gaierror, UnicodeError):  # the latter where it can be no name at all
            last = f"the name {host} is not known to DNS"
        except OSError as reason:
            last = reason.strerror or str(reason)
            refused = isinstance(reason, ConnectionRefusedError)
        return False

    def pauses() -> Iterator[float]:
        # A host that refuses is up, and its program is starting: to ask it again costs two
        # packets. What else is wrong takes longer to pass, and DNS is asked for each attempt.
        for pause in backoff(first=0.01, last=1.0):
            yield min(pause, _REFUSED) if refused else pause

    wait_until(
        reachable,
        what=f"{who} to reach the master at {host}:{port}",
        whom=lambda: last,
        deadline=deadline,
        hint=(
            "Is the pod of rank 0 running, does its Service exist, and is MASTER_ADDR right? "
            "TRAINKIT_TIMEOUT sets the seconds to wait."
        ),
        pauses=pauses(),
    )


_REFUSED = 0.05
"""Seconds between attempts at most while a host refuses: what a start loses by waiting first."""

_ELSEWHERE = "192.0.2.1"
"""An address of nobody's (RFC 5737): what leads there is the default route. Nothing is sent."""


def own_address_is_loopback() -> bool:
    """Whether this host's own name resolves to loopback addresses alone, or to nothing."""
    return not _named_addresses()


def own_address() -> str | None:
    """An address of this host for others: what its name stands for, or its default route's.

    None where there is neither, as on a host with nothing but loopback.
    """
    found = next(iter(_named_addresses()), None)
    if found is None:
        route = default_interface()
        found = route[1] if route is not None else None
    return found


def _named_addresses() -> list[str]:
    """What this host's own name resolves to, without loopback addresses."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return []
    addresses = [str(entry[4][0]) for entry in found]
    return [text for text in addresses if not ipaddress.ip_address(text.split("%")[0]).is_loopback]


def interface_towards(host: str, port: int) -> tuple[str, str] | None:
    """The network interface that leads to ``host``, and this host's address on it.

    The kernel's routing decides: a UDP socket that is connected sends nothing, but gets the
    local address of its route. None where that is loopback or no IPv4 interface has it.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.connect((*address[:1], address[1] or 9, *address[2:]))
            local = str(probe.getsockname()[0])
    except (OSError, UnicodeError):
        return None
    if ipaddress.ip_address(local).is_loopback:
        return None
    names = (name for _, name in socket.if_nameindex())
    return next(((name, local) for name in names if _address_of(name) == local), None)


def default_interface() -> tuple[str, str] | None:
    """As ``interface_towards``, for whatever is not near: the default route's."""
    return interface_towards(_ELSEWHERE, 9)


def _address_of(interface: str) -> str | None:
    """IPv4 address of an interface, by the ioctl SIOCGIFADDR (netdevice(7))."""
    import fcntl

    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe.fileno(), 0x8915, request)
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])


def port_holder(port: int) -> str:
    """Who listens on a TCP port of this host, as far as /proc shows it to this user."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(fd.readlink()) in inodes for fd in (process / "fd").iterdir()):
                name = (process / "comm").read_text(encoding="utf-8").strip()
                return f"process {process.name} ({name})"
        except OSError:
            continue
    return "another process"


def port_not_served(port: int, reason: str) -> EnvironmentFaultError:
    """What to raise where rank 0 cannot listen on ``port``, for ``reason``."""
    if "in use" not in reason and "EADDRINUSE" not in reason:
        return EnvironmentFaultError(
            f"rank 0 cannot serve the rendezvous on port {port}: {reason}. Give this job another "
            f"MASTER_PORT on all of its ranks."
        )
    return EnvironmentFaultError(
        f"rank 0 cannot serve the rendezvous on port {port}: it is in use by {port_holder(port)}. "
        f"End that process, or give this job another MASTER_PORT on all of its ranks."
    )
