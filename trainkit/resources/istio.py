"""A proxy of Istio's beside this container: whether it is there, and telling it to end."""

from __future__ import annotations

import http.client
from collections.abc import Sequence

__all__ = ["PORTS", "health", "quit_sidecar"]

PORTS = (15021, 15020)
"""Where a sidecar answers for its health: the proxy itself, and its agent."""
_AGENT = 15020
_SECONDS = 3.0


def health(port: int) -> int | None:
    """The status of a sidecar's answer on ``port``, 200 or 503; None where there is none."""
    status = _ask("GET", port, "/healthz/ready")
    return status if status in (200, 503) else None


def quit_sidecar(ports: Sequence[int] = (_AGENT,)) -> bool:
    """Have the sidecar end, which would keep a finished pod running; whether there was one.

    A native sidecar (an init container that goes on) is ended by the kubelet anyway.
    """
    return any(
        health(port) is not None and _ask("POST", port, "/quitquitquit") == 200 for port in ports
    )


def _ask(method: str, port: int, path: str) -> int | None:
    """The status of the answer; None where nobody speaks HTTP."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
