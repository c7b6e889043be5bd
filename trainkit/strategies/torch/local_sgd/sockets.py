"""TCP as both sides want it: servers listen, workers connect, and a lost host is found out."""

import socket
from contextlib import suppress

from trainkit.errors import EnvironmentFaultError
from trainkit.strategies.torch.local_sgd.addresses import Address

__all__ = ["CONNECT", "connected", "keep_alive", "listen"]

CONNECT = 5.0
"""Seconds of one attempt to connect, and of the greeting."""


def listen(port: int) -> socket.socket:
    """Listen for workers on all addresses of this host.

    Raises:
        EnvironmentFaultError: the port is taken, or may not be used.
    """
    if socket.has_dualstack_ipv6():
        # A kernel that knows IPv6 may still have it turned off.
        with suppress(OSError):
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=128
            )
    try:
        return socket.create_server(("", port), backlog=128)
    except OSError as reason:
        from trainkit.coordination.network import port_holder

        raise EnvironmentFaultError(
            f"this parameter server cannot listen on port {port}: {reason.strerror} "
            f"({port_holder(port)} has it). The port comes from the cluster's addresses of ps."
        ) from None


def connected(address: Address, seconds: float = CONNECT) -> socket.socket:
    """Connect within ``seconds``.

    Raises:
        OSError: nobody listens there, or the name is not known.
    """
    connection = socket.create_connection(address, timeout=seconds)
    if connection.getsockname() == connection.getpeername():
        # TCP lets a socket connect to itself where nobody listens on an ephemeral port.
        connection.close()
        raise ConnectionRefusedError("nobody listens")
    keep_alive(connection)
    return connection


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel find out within half a minute that the other host is gone, and no delays."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 25_000)
