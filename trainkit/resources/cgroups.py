"""Files of the control groups that limit this process, in versions 1 and 2."""

import os

__all__ = ["folders", "numbers", "read"]


def folders(root: str, controller: str) -> list[str]:
    """Folders of this process's cgroups and of those above them.

    In a container the path is often the host's, of which only the top is mounted: folders
    that are not there are simply not read.

    Args:
        root: of the file system, ``/`` but for tests.
        controller: ``cpu`` or ``memory``.
    """
    text = read(os.path.join(root, "proc/self/cgroup")) or "0::/"
    found = []
    for line in text.splitlines():
        controllers, _, group = line.partition(":")[2].partition(":")
        if not controllers:
            mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        elif controller in controllers.split(","):
            mounts = [f"/sys/fs/cgroup/{controllers}", f"/sys/fs/cgroup/{controller}"]
        else:
            continue
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            found += ["/".join([mount, *parts[:depth]]) for mount in mounts]
    return found


def numbers(path: str) -> list[float]:
    """Positive numbers of a file; "max" and -1, which set no limit, are none."""
    words = (read(path) or "").split()
    return [float(word) for word in words if word.isdecimal() and int(word) > 0]


def read(path: str) -> str | None:
    """A file's text, or None where it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return None
