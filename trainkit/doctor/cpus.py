"""The CPU limit against the threads and processes of the ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator

from trainkit import config
from trainkit.doctor.finding import Finding, Question, Status
from trainkit.doctor.job import ranks_here
from trainkit.resources.cpus import cpu_limit

__all__ = ["check", "judge"]


def check(question: Question) -> Iterator[Finding]:
    """Compare what may be used with what would be started."""
    limit, source = cpu_limit()
    threads = config.environ().get("OMP_NUM_THREADS", "")
    yield judge(limit, source, os.cpu_count() or 1, ranks_here(), threads, question.loader_workers)


def judge(
    limit: float, source: str, cores: int, ranks: int, threads: str, workers: int | None
) -> Finding:
    """What a limit means.

    Args:
        limit: CPUs that this container may use.
        source: what limits them.
        cores: CPUs of the host.
        ranks: of this host.
        threads: value of OMP_NUM_THREADS; empty if it is not set.
        workers: processes that load data for each rank, if that is known.
    """
    found = f"{limit:g} CPUs by {source}, {cores} on the host, {ranks} rank(s) here"
    values = {"limit": limit, "source": source, "host": cores, "ranks": ranks}
    values |= {"omp_num_threads": threads or None, "loader_workers": workers}
    share = max(1, int(limit) // ranks)
    advice = []
    if limit < ranks:
        advice.append(f"Grant at least {ranks} CPUs: the ranks take turns, and all wait for one.")
    if threads.isdecimal() and int(threads) * ranks > max(limit, ranks):
        advice.append(
            f"OMP_NUM_THREADS={threads} for each of {ranks} rank(s) is more than the limit: "
            f"threads are throttled. Set it to {share}."
        )
    elif not threads and cores > limit:
        found += ", OMP_NUM_THREADS is not set"
        advice.append(
            f"Libraries start a thread a core of the host. Set OMP_NUM_THREADS={share}, or let "
            f"trainkit start the ranks, which does."
        )
    if workers is not None and (workers + 1) * ranks > limit:
        fit = max(0, int(limit) // ranks - 1)
        advice.append(
            f"{ranks} rank(s) with {workers} loader workers each are {(workers + 1) * ranks} busy "
            f"processes: use {fit} workers, or grant more CPUs."
        )
    status = Status.WARNING if advice else Status.OK
    return Finding("cpu", status, found, " ".join(advice), values)
