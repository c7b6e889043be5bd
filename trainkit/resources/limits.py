"""Limits beside those of memory and CPU: open files, locked memory, processes."""

import os
import resource

from trainkit.resources.cgroups import folders, numbers

__all__ = ["process_limit", "tasks_left"]


def process_limit(name: str) -> tuple[int | None, int | None]:
    """The soft and the hard limit of this process; None stands for unlimited.

    Args:
        name: as ``ulimit`` and setrlimit(2) have it, in lower case: ``nofile``, ``memlock``.
    """
    pair = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))
    soft, hard = (None if value == resource.RLIM_INFINITY else value for value in pair)
    return soft, hard


def tasks_left(root: str = "/") -> tuple[int, str] | None:
    """Processes and threads that this container may still start, and the file that says so.

    None where no control group limits them.
    """
    found = []
    for folder in folders(root, "pids"):
        inside = os.path.join(root, folder.lstrip("/"))
        limit = numbers(os.path.join(inside, "pids.max"))
        used = numbers(os.path.join(inside, "pids.current"))
        if limit and used:
            found.append((max(0, int(limit[0] - used[0])), f"{folder}/pids.max"))
    return min(found, default=None)
