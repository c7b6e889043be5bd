"""Free TCP ports that test sessions on one host do not take from each other.

Binding to port 0 and closing the socket gives a port from the ephemeral range, which the
kernel may hand to the next outgoing connection of anybody. The ports here lie below that
range, and while one is reserved an abstract Unix socket of its name is held: like the ports
themselves it belongs to the network namespace, and it vanishes with its owner.
"""

import atexit
import random
import socket
from collections import deque
from pathlib import Path

__all__ = ["PortReservation", "free_port"]

_RANGE = 10_000
"""How many ports below the ephemeral range are considered."""

_KEPT = 64
"""How many of the newest ports that `free_port` returned stay reserved."""


class PortReservation:
    """A free port that no other user of this module in the network namespace is given."""

    def __init__(self) -> None:
        """Find and reserve a port.

        Raises:
            OSError: no port is free.
        """
        self.port, self._lock = _reserve()

    def release(self) -> None:
        """Let others have the port; calling it again does nothing."""
        self._lock.close()


_newest: deque[PortReservation] = deque()


def free_port() -> int:
    """A TCP port that nobody listens on now.

    Other users of this function (sessions running side by side too) are not given the same
    one while this process lives, as far as its 64 newest ports go. A program that picks fixed
    ports by itself can still take it before you do: no function can rule that out.

    Raises:
        OSError: no port is free.
    """
    if len(_newest) >= _KEPT:
        _newest.popleft().release()
    reservation = PortReservation()
    _newest.append(reservation)
    return reservation.port


@atexit.register
def _release_all() -> None:
    while _newest:
        _newest.pop().release()


def _reserve() -> tuple[int, socket.socket]:
    ports = list(_candidates())
    # Sessions start at different places, so they rarely even try the same port.
    start = random.SystemRandom().randrange(len(ports))
    for port in ports[start:] + ports[:start]:
        lock = _lock(port)
        if lock is None:
            continue
        if _bindable(port):
            return port, lock
        lock.close()
    raise OSError(
        f"No TCP port between {ports[0]} and {ports[-1]} is free on this host. "
        "End what listens there (ss -tlnp shows it)."
    )


def _candidates() -> range:
    try:
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        low = 32_768
    first = low - _RANGE
    # A host whose ephemeral range begins at 1024 leaves nothing below it.
    return range(first, low) if first > 1024 else range(20_000, 20_000 + _RANGE)


def _lock(port: int) -> socket.socket | None:
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        lock.bind(f"\0trainkit-testing-port-{port}")
    except OSError:
        lock.close()
        return None
    return lock


def _bindable(port: int) -> bool:
    # On all addresses and without SO_REUSEADDR: stricter than what a server will ask for.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
