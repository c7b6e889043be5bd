"""Ranks on one host tell each other a port through a file, where no launcher gives one.

``mpirun`` gives every rank its number and nobody an address. On one host a small file does,
named after what the launcher calls its job. A file left over from a job that is gone counts
for nothing: it names the process that wrote it, and that process must be alive.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from trainkit.waiting import Deadline, wait_until

__all__ = ["job_namespace", "meet_on_host", "publish_port"]

_NAMESPACES = ("PMIX_NAMESPACE", "MPIRUN_ID", "PMI_PORT", "FLUX_JOB_ID", "SLURM_JOB_ID")
"""Variables in which MPI launchers name a job, the most exact first."""


def job_namespace(environ: Mapping[str, str]) -> str:
    """A name that the ranks of one launcher's job share, and other jobs on this host do not."""
    given = [f"{name}={environ[name]}" for name in _NAMESPACES if environ.get(name)]
    step = environ.get("SLURM_STEP_ID", "")
    # Hydra names nothing; its ranks are children of one proxy process.
    return "|".join([*given, step]) if given else f"parent={os.getppid()}"


def publish_port(namespace: str, port: int) -> Path:
    """Rank 0: say on which port of this host the ranks meet.

    Returns:
        The file, to be removed when all have met.
    """
    path = _path(namespace)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    note = {"port": port, "pid": os.getpid(), "started": _start_time(os.getpid())}
    temporary.write_text(json.dumps(note), encoding="ascii")
    temporary.replace(path)
    return path


def meet_on_host(namespace: str, *, who: str, deadline: Deadline) -> int:
    """Other ranks: the port that rank 0 of this namespace published.

    Raises:
        DeadlineError: rank 0 did not publish one in time.
    """
    path = _path(namespace)

    def published() -> int | None:
        try:
            note = json.loads(path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None
        alive = _start_time(note["pid"]) == note["started"] is not None
        return int(note["port"]) if alive else None

    return wait_until(
        published,
        what=f"{who} to hear from rank 0 on this host",
        deadline=deadline,
        hint="Rank 0 did not start; look at its output.",
    )


def _path(namespace: str) -> Path:
    digest = hashlib.sha256(namespace.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"trainkit-{os.getuid()}" / f"meeting-{digest}.json"


def _start_time(pid: int) -> int | None:
    """Start of a process in clock ticks since boot (proc(5), field 22); None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])
