"""Limits of open files, locked memory, core dumps, and processes."""

from __future__ import annotations

import os
from collections.abc import Iterator

from trainkit.doctor.finding import Finding, Question, Status
from trainkit.doctor.job import ranks_here
from trainkit.doctor.sizes import size
from trainkit.resources.limits import process_limit, tasks_left

__all__ = ["check"]

_FEW_FILES, _TOO_FEW_FILES = 4096, 256
_TASKS_OF_A_RANK = 100
"""Threads that a rank of torch starts on a host of some tens of cores, and more with workers."""
_INFINIBAND = "/dev/infiniband"


def check(question: Question) -> Iterator[Finding]:
    """Look at each limit."""
    yield _files()
    yield _locked_memory()
    yield _core_dumps()
    yield _tasks(question)


def _files() -> Finding:
    soft, hard = process_limit("nofile")
    values = {"soft": soft, "hard": hard}
    found = f"{_shown(soft)} open files (at most {_shown(hard)})"
    if soft is None or soft >= _FEW_FILES:
        return Finding("nofile", Status.OK, found, values=values)
    raised = "`ulimit -n 65536` before the command"
    if hard is not None and hard < _FEW_FILES:
        raised = "LimitNOFILE of the container runtime (docker: --ulimit nofile=65536)"
    advice = f"Workers that load data, and stores, open many: raise it with {raised}."
    status = Status.BROKEN if soft < _TOO_FEW_FILES else Status.WARNING
    return Finding("nofile", status, found, advice, values)


def _locked_memory() -> Finding:
    soft, hard = process_limit("memlock")
    fabric = os.path.isdir(_INFINIBAND)
    values = {"soft": soft, "hard": hard, "infiniband": fabric}
    found = f"{'unlimited' if soft is None else size(soft)} of locked memory"
    if not fabric:
        return Finding("memlock", Status.OK, f"{found}; there is no InfiniBand device", "", values)
    if soft is None:
        return Finding("memlock", Status.OK, found, values=values)
    advice = (
        "NCCL cannot register memory with the InfiniBand device: give the container the "
        "capability IPC_LOCK, or memlock unlimited (docker: --ulimit memlock=-1)."
    )
    return Finding("memlock", Status.WARNING, found, advice, values)


def _core_dumps() -> Finding:
    soft, hard = process_limit("core")
    values = {"soft": soft, "hard": hard}
    if soft == 0:
        return Finding("core", Status.OK, "no core dumps are written", values=values)
    found = f"core dumps of up to {'any size' if soft is None else size(soft)} are written"
    advice = (
        "A rank that crashes writes its whole memory to disk: `ulimit -c 0`, if nobody reads it."
    )
    return Finding("core", Status.OK, found, advice, values)


def _tasks(question: Question) -> Finding:
    left = tasks_left()
    ranks = ranks_here()
    if left is None:
        return Finding("pids", Status.OK, "no limit of processes in the control group")
    need = ranks * (_TASKS_OF_A_RANK + 10 * (question.loader_workers or 0))
    values = {"left": left[0], "source": left[1], "need": need, "ranks": ranks}
    found = f"{left[0]} processes and threads may still be started, by {left[1]}"
    if left[0] >= need:
        return Finding("pids", Status.OK, found, values=values)
    advice = f"{ranks} rank(s) may take about {need}: raise podPidsLimit of the kubelet."
    return Finding("pids", Status.WARNING, found, advice, values)


def _shown(limit: int | None) -> str:
    return "unlimited" if limit is None else str(limit)
