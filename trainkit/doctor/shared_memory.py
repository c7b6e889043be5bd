"""Shared memory against what loaders' workers and NCCL put there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

from trainkit.doctor.finding import Finding, Question, Status
from trainkit.doctor.job import ranks_here
from trainkit.doctor.sizes import size
from trainkit.resources.space import Space, space_of

__all__ = ["check", "judge"]

FOLDER = "/dev/shm"  # noqa: S108 - POSIX shared memory lies there
_DEFAULT = 64 << 20
"""What a container runtime gives where nobody asks for more."""
_LEAST = 1 << 20
_IN_FLIGHT = 3
"""Batches of a worker that are there at once: two ahead by default, and one in use."""
_YAML = (
    "Mount memory there: `volumes: [{name: shm, emptyDir: {medium: Memory}}]` and "
    "`volumeMounts: [{name: shm, mountPath: /dev/shm}]` (docker: --shm-size); it counts against "
    "the memory limit."
)


def check(question: Question) -> Iterator[Finding]:
    """Look at its size, and write there."""
    try:
        space = space_of(FOLDER)
        with tempfile.TemporaryFile(dir=FOLDER) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        found = f"{FOLDER} cannot be used: {error.strerror or error}"
        yield Finding("shared-memory", Status.BROKEN, found, _YAML)
        return
    ranks = ranks_here()
    yield judge(space, ranks, question.loader_workers, question.batch_size)


def judge(space: Space, ranks: int, workers: int | None, batch: int | None) -> Finding:
    """What its size means.

    Args:
        space: of /dev/shm.
        ranks: of this host.
        workers: processes that load data for each rank, if that is known.
        batch: bytes of a batch, if that is known.
    """
    need = None
    if workers is not None and batch is not None:
        need = ranks * workers * _IN_FLIGHT * batch
    found = f"{size(space.free)} of {size(space.total)} free in {FOLDER}"
    values = {"total": space.total, "free": space.free, "need": need, "ranks": ranks}
    values["loader_workers"] = workers
    dies = "Workers would die of SIGBUS (exit code 135)."
    if space.free < _LEAST:
        return Finding("shared-memory", Status.BROKEN, found, f"{dies} {_YAML}", values)
    if need is not None and space.free < need:
        found += (
            f", and {ranks} rank(s) with {workers} loader workers need about {size(need)} "
            f"({_IN_FLIGHT} batches of {size(batch or 0)} each)"
        )
        return Finding("shared-memory", Status.BROKEN, found, f"{dies} {_YAML}", values)
    if space.free <= _DEFAULT and workers != 0 and need is None:
        found += ": too little for most loaders with workers, and for NCCL among several GPUs"
        return Finding("shared-memory", Status.WARNING, found, f"{dies} {_YAML}", values)
    return Finding("shared-memory", Status.OK, found, values=values)
