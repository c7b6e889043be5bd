"""How much more memory this process may take, and who was killed for having taken too much."""

import os
from collections.abc import Iterator

from trainkit.resources.cgroups import folders, numbers, read

__all__ = [
    "memory_left",
    "memory_limit",
    "memory_use",
    "oom_kills",
    "shared_memory",
    "smallest_limit",
    "smallest_room",
]

_NO_LIMIT = 1 << 62
"""Version 1 writes a number near 2**63 where there is no limit."""


def memory_left() -> int | None:
    """Bytes that may still be allocated; None where nothing tells.

    The smallest of what is available on the machine and of what is left below the memory limit
    of each cgroup, in which file pages that nobody uses do not count.
    """
    return smallest_room("/")


def memory_limit() -> tuple[int, str] | None:
    """Bytes that this container may use, and what says so; None where nothing tells."""
    return smallest_limit("/")


def smallest_limit(root: str) -> tuple[int, str] | None:
    """``memory_limit`` for a file system below ``root``."""
    found = []
    kilobytes = _named(read(os.path.join(root, "proc/meminfo")), "MemTotal:")
    if kilobytes is not None:
        found.append((int(kilobytes * 1024), "the machine"))
    for folder in folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = numbers(os.path.join(root, folder.lstrip("/"), name))
            if limit:
                found.append((int(limit[0]), f"{folder}/{name}"))
    return min(found, default=None)


def smallest_room(root: str) -> int | None:
    """``memory_left`` for a file system below ``root``."""
    rooms = [room for room in (_available(root), *_below_limits(root)) if room is not None]
    return max(0, int(min(rooms))) if rooms else None


def _available(root: str) -> float | None:
    kilobytes = _named(read(os.path.join(root, "proc/meminfo")), "MemAvailable:")
    return None if kilobytes is None else kilobytes * 1024


def oom_kills(root: str = "/") -> int | None:
    """Processes of this process's cgroup that the kernel has killed for want of memory, ever.

    Two calls tell what was killed between them. Version 2 counts groups below, too, version 1
    the group alone. None where nothing counts (a kernel before 4.13, no cgroup of memory).
    """
    for inside in _groups(root):
        for file in ("memory.events", "memory.oom_control"):
            count = _named(read(os.path.join(inside, file)), "oom_kill")
            if count is not None:
                return int(count)  # the groups above hold other containers
    return None


def memory_use(root: str = "/") -> tuple[int, int] | None:
    """Bytes in use and the limit, of the cgroup nearest to its limit; None without a limit."""
    limits = list(_limits(root))
    if not limits:
        return None
    usage, limit, _ = min(limits, key=lambda one: one[1] - one[0] + one[2])
    return int(usage), int(limit)


def shared_memory(folder: str = "/dev/shm") -> tuple[int, int] | None:  # noqa: S108
    """Size of the shared memory and what is free of it, in bytes; None where there is none."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def _groups(root: str) -> Iterator[str]:
    for folder in folders(root, "memory"):
        yield os.path.join(root, folder.lstrip("/"))


def _below_limits(root: str) -> list[float]:
    return [limit - usage + idle for usage, limit, idle in _limits(root)]


def _limits(root: str) -> Iterator[tuple[float, float, float]]:
    """Usage, limit, and what of the usage are file pages that nobody uses, of each cgroup."""
    for inside in _groups(root):
        for limit_file, usage_file, idle_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = numbers(os.path.join(inside, limit_file))
            usage = numbers(os.path.join(inside, usage_file))
            if limit and usage and limit[0] < _NO_LIMIT:
                idle = _named(read(os.path.join(inside, "memory.stat")), idle_name) or 0.0
                yield usage[0], limit[0], idle


def _named(text: str | None, name: str) -> float | None:
    """The number after ``name`` at the beginning of a line."""
    for line in (text or "").splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == name and words[1].isdecimal():
            return float(words[1])
    return None
