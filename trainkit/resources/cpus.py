"""CPUs that this process may use, and which limit says so."""

import os

from trainkit.resources.cgroups import folders, numbers

__all__ = ["cpu_limit", "smallest_limit"]


def cpu_limit() -> tuple[float, str]:
    """CPUs that this process may use, and the limit that decided.

    The smaller of the affinity (cpuset, ``taskset``) and the CPU time that its cgroup, or one
    above it, is granted. ``os.cpu_count()`` is the machine's number, and in a pod wrong.
    """
    return smallest_limit("/", _affinity())


def smallest_limit(root: str, affinity: int) -> tuple[float, str]:
    """``cpu_limit`` for a file system below ``root`` and a number of usable CPUs."""
    cpus, source = float(affinity), "CPU affinity"
    for path, quota in _quotas(root):
        if quota < cpus:
            cpus, source = quota, f"cgroup quota in {path}"
    return cpus, source


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(root: str) -> list[tuple[str, float]]:
    """Path and CPUs of each quota that binds this process, in cgroup v2 and v1."""
    found = []
    for folder in folders(root, "cpu"):
        inside = os.path.join(root, folder.lstrip("/"))
        v2 = numbers(os.path.join(inside, "cpu.max"))
        if len(v2) == 2:
            found.append((f"{folder}/cpu.max", v2[0] / v2[1]))
        v1 = numbers(os.path.join(inside, "cpu.cfs_quota_us"))
        period = numbers(os.path.join(inside, "cpu.cfs_period_us"))
        if v1 and period:
            found.append((f"{folder}/cpu.cfs_quota_us", v1[0] / period[0]))
    return found
