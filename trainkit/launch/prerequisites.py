"""What must be there before ranks can start: a name, a port, a file with something in it, a folder.

In a cluster all of them appear late: DNS answers after its pod, a ConfigMap is mounted after
the container, and a volume while it is attached.
"""

import socket
from pathlib import Path

from trainkit.waiting import Deadline, backoff, wait_until

__all__ = ["await_file", "await_folder", "await_name", "await_port", "port_trouble"]


def await_name(host: str, *, deadline: Deadline) -> None:
    """Wait until ``host`` resolves.

    Raises:
        DeadlineError: names the host, and what the resolver said last.
    """
    last = "not tried yet"

    def resolves() -> bool:
        nonlocal last
        try:
            return bool(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
        except OSError as reason:
            last = reason.strerror or str(reason)
        return False

    wait_until(
        resolves,
        what=f"the name {host} to be known to DNS",
        whom=lambda: last,
        deadline=deadline,
        hint="Is that pod running, and does the job's headless Service exist?",
        pauses=backoff(first=0.05, last=1.0),
    )


def await_port(host: str, port: int, *, what: str, deadline: Deadline) -> None:
    """Wait until something listens on ``port`` of ``host``.

    Args:
        host: name or address; a name may appear late.
        port: TCP port.
        what: the thing that is to listen there, for messages.
        deadline: when to give up.

    Raises:
        DeadlineError: names ``what``, host and port, and the last thing that went wrong.
    """
    last = "not tried yet"

    def answers() -> bool:
        nonlocal last
        last = port_trouble(host, port, min(5.0, deadline.left + 0.1))
        return not last

    wait_until(
        answers,
        what=f"{what} at {host}:{port}",
        whom=lambda: last,
        deadline=deadline,
        hint="Is that pod running, and does its Service exist?",
        pauses=backoff(first=0.05, last=1.0),
    )


def port_trouble(host: str, port: int, timeout: float) -> str:
    """What keeps ``host:port`` from accepting a connection now; empty where nothing does.

    Args:
        host: name or address.
        port: TCP port.
        timeout: seconds for the one attempt.
    """
    try:
        with socket.create_connection((host, port), timeout=timeout):
            return ""
    except socket.gaierror:
        return "its name is not known to DNS"
    except OSError as reason:
        return f"port {port}: {(reason.strerror or str(reason)).lower()}"


def await_file(path: str, *, what: str, deadline: Deadline) -> None:
    """Wait until the file ``path`` is there and holds something.

    Raises:
        DeadlineError: names ``what`` and the path, and whether it is missing or empty.
    """
    last = "not looked yet"

    def holds_something() -> bool:
        nonlocal last
        try:
            with open(path, "rb") as file:
                if file.read(1):
                    return True
            last = "it is empty"
        except OSError as reason:
            last = (reason.strerror or str(reason)).lower()
        return False

    wait_until(
        holds_something,
        what=f"{what} {path}",
        whom=lambda: last,
        deadline=deadline,
        hint="Is its ConfigMap, Secret or volume mounted in this container?",
        pauses=backoff(first=0.05, last=1.0),
    )


def await_folder(path: str, *, what: str, deadline: Deadline) -> None:
    """Wait until ``path`` is a folder that can be listed: a volume that is mounted.

    Raises:
        DeadlineError: names ``what`` and the path, and what stands in the way.
    """
    last = "not looked yet"

    def is_listed() -> bool:
        nonlocal last
        try:
            next(Path(path).iterdir(), None)
        except OSError as reason:
            last = (reason.strerror or str(reason)).lower()
            return False
        return True

    wait_until(
        is_listed,
        what=f"{what} {path}",
        whom=lambda: last,
        deadline=deadline,
        hint="Is its volume mounted in this container, and may this user read it?",
        pauses=backoff(first=0.05, last=1.0),
    )
