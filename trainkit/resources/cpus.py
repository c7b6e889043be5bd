"""CPUs that this process may use, and which limit says so."""

import os

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
    for folder in _folders(root):
        inside = os.path.join(root, folder.lstrip("/"))
        v2 = _numbers(os.path.join(inside, "cpu.max"))
        if len(v2) == 2:
            found.append((f"{folder}/cpu.max", v2[0] / v2[1]))
        v1 = _numbers(os.path.join(inside, "cpu.cfs_quota_us"))
        period = _numbers(os.path.join(inside, "cpu.cfs_period_us"))
        if v1 and period:
            found.append((f"{folder}/cpu.cfs_quota_us", v1[0] / period[0]))
    return found


def _folders(root: str) -> list[str]:
    """Folders of this process's cgroups and of those above them.

    In a container the path is often the host's, of which only the top is mounted: folders
    that are not there are simply not read.
    """
    text = _read(os.path.join(root, "proc/self/cgroup")) or "0::/"
    folders = []
    for line in text.splitlines():
        controllers, _, group = line.partition(":")[2].partition(":")
        if not controllers:
            mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        elif "cpu" in controllers.split(","):
            mounts = [f"/sys/fs/cgroup/{controllers}", "/sys/fs/cgroup/cpu"]
        else:
            continue
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            folders += ["/".join([mount, *parts[:depth]]) for mount in mounts]
    return folders


def _numbers(path: str) -> list[float]:
    """Positive numbers of a file; "max" and -1, which set no limit, are none."""
    words = (_read(path) or "").split()
    return [float(word) for word in words if word.isdecimal() and int(word) > 0]


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return None
