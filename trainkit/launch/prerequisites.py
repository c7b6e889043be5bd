"""What must be there before ranks can start: a name, a port, a file with something in it, a folder.

In a cluster all of them appear late: DNS answers after its pod, a ConfigMap is mounted after
the container, and a volume while it is attached.
"""

import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from trainkit.errors import UsageError
from trainkit.waiting import Deadline, backoff, wait_until

__all__ = [
    "await_all",
    "await_file",
    "await_mount",
    "await_name",
    "await_path",
    "await_port",
    "check_things",
    "port_trouble",
]

_MOUNT = "mount:"
_PATHS = ("/", "./", "../")
_MOUNTED = "Is its ConfigMap, Secret or volume mounted here, and may this user read it?"


def check_things(things: Iterable[str]) -> None:
    """See that each of ``things`` is one that ``await_all`` can wait for.

    Raises:
        UsageError: one is not.
    """
    for thing in things:
        host, colon, port = thing.rpartition(":")
        if thing.startswith((_MOUNT, *_PATHS)):
            continue
        known = host if colon else thing
        if colon and not (port.isdecimal() and 0 < int(port) < 65536):
            known = ""
        if not _is_host(known.strip("[]")):
            raise UsageError(
                f"--wait-for {thing!r}: expected /path, mount:/path, host:port or host"
            )


def await_all(things: Iterable[str], *, deadline: Deadline) -> None:
    """Wait for each of ``things``: ``/path``, ``mount:/path``, ``host:port`` or ``host``.

    Args:
        things: what must be there, as ``check_things`` lets pass. A path may be a folder, or a
            file with something in it; with ``mount:`` something must be mounted there.
        deadline: for all of them together.

    Raises:
        DeadlineError: names the first that is not there in time.
    """
    for thing in things:
        host, colon, port = thing.rpartition(":")
        if thing.startswith(_MOUNT):
            await_mount(thing.removeprefix(_MOUNT), deadline=deadline)
        elif thing.startswith(_PATHS):
            await_path(thing, deadline=deadline)
        elif colon:
            await_port(host.strip("[]"), int(port), what="what was asked for", deadline=deadline)
        else:
            await_name(thing, deadline=deadline)


def _is_host(text: str) -> bool:
    """Whether ``text`` can be a host's name or address, known or not."""
    if set(text) & set("/ "):
        return False
    try:
        return bool(text.encode("idna"))
    except UnicodeError:  # an empty part, or one that is too long
        return False


def await_path(path: str, *, deadline: Deadline) -> None:
    """Wait for a folder that can be listed, or a file with something in it.

    Raises:
        DeadlineError: names the path, and what stands in the way.
    """

    def trouble() -> str:
        return _file_trouble(path) if Path(path).is_file() else _folder_trouble(path)

    _await(trouble, what=f"the path {path}", deadline=deadline, hint=_MOUNTED)


def await_mount(path: str, *, deadline: Deadline) -> None:
    """Wait until something is mounted at ``path``, as by a sidecar with a FUSE file system.

    Raises:
        DeadlineError: names the path.
    """
    _await(
        lambda: "" if os.path.ismount(path) else "nothing is",
        what=f"something to be mounted at {path}",
        deadline=deadline,
        hint="Does the container that mounts it run, and is its mount propagated to this one?",
    )


def await_name(host: str, *, deadline: Deadline) -> None:
    """Wait until ``host`` resolves.

    Raises:
        DeadlineError: names the host, and what the resolver said last.
    """

    def trouble() -> str:
        try:
            socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as reason:
            return getattr(reason, "strerror", None) or str(reason)
        return ""

    _await(
        trouble,
        what=f"the name {host} to be known to DNS",
        deadline=deadline,
        hint="Is that pod running, and does the job's headless Service exist?",
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
    _await(
        lambda: port_trouble(host, port, min(5.0, deadline.left + 0.1)),
        what=f"{what} at {host}:{port}",
        deadline=deadline,
        hint="Is that pod running, and does its Service exist?",
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
    except (socket.gaierror, UnicodeError):
        return "its name is not known to DNS"
    except OSError as reason:
        return f"port {port}: {(reason.strerror or str(reason)).lower()}"


def await_file(path: str, *, what: str, deadline: Deadline) -> None:
    """Wait until the file ``path`` is there and holds something.

    Raises:
        DeadlineError: names ``what`` and the path, and whether it is missing or empty.
    """
    _await(lambda: _file_trouble(path), what=f"{what} {path}", deadline=deadline, hint=_MOUNTED)


def _file_trouble(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return "" if file.read(1) else "it is empty"
    except OSError as reason:
        return (reason.strerror or str(reason)).lower()


def _folder_trouble(path: str) -> str:
    try:
        next(Path(path).iterdir(), None)
    except OSError as reason:
        return (reason.strerror or str(reason)).lower()
    return ""


def _await(trouble: Callable[[], str], *, what: str, deadline: Deadline, hint: str) -> None:
    """Wait until ``trouble`` finds none; what it found last is in the message."""
    last = "not looked yet"

    def is_there() -> bool:
        nonlocal last
        last = trouble()
        return not last

    wait_until(
        is_there,
        what=what,
        whom=lambda: last,
        deadline=deadline,
        hint=hint,
        pauses=backoff(first=0.05, last=1.0),
    )
