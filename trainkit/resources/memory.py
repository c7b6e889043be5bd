"""How much more memory this process may take before it is killed for it."""

import os

from trainkit.resources.cgroups import folders, numbers, read

__all__ = ["memory_left", "smallest_room"]


def memory_left() -> int | None:
    """Bytes that may still be allocated; None where nothing tells.

    The smallest of what is available on the machine and of what is left below the memory limit
    of each cgroup, in which file pages that nobody uses do not count.
    """
    return smallest_room("/")


def smallest_room(root: str) -> int | None:
    """``memory_left`` for a file system below ``root``."""
    rooms = [room for room in (_available(root), *_below_limits(root)) if room is not None]
    return max(0, int(min(rooms))) if rooms else None


def _available(root: str) -> float | None:
    kilobytes = _named(read(os.path.join(root, "proc/meminfo")), "MemAvailable:")
    return None if kilobytes is None else kilobytes * 1024


def _below_limits(root: str) -> list[float]:
    rooms = []
    for folder in folders(root, "memory"):
        inside = os.path.join(root, folder.lstrip("/"))
        for limit_file, usage_file, idle_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = numbers(os.path.join(inside, limit_file))
            usage = numbers(os.path.join(inside, usage_file))
            if limit and usage:
                idle = _named(read(os.path.join(inside, "memory.stat")), idle_name) or 0.0
                rooms.append(limit[0] - usage[0] + idle)
    return rooms


def _named(text: str | None, name: str) -> float | None:
    """The number after ``name`` at the beginning of a line."""
    for line in (text or "").splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == name and words[1].isdecimal():
            return float(words[1])
    return None
