"""All-reduce among the ranks of this host, and across the job: real processes, a real group."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from trainkit import config
from trainkit.doctor.checks import CHECKS, seconds_of
from trainkit.doctor.devices.presence import NO_TORCH, torch_folder
from trainkit.doctor.devices.program import Program
from trainkit.doctor.finding import Finding, Question, Status
from trainkit.doctor.job import ranks_here, topology_or_none
from trainkit.doctor.sizes import speed
from trainkit.resources.gpus import visible_gpu_count
from trainkit.topology import Topology
from trainkit.waiting import Deadline

__all__ = ["check_across", "check_local", "judge", "ranks_across"]

_MOST_ON_CPU = 8
_SHARE = 0.9
_CLOCKS = 2.0
"""Seconds by which clocks of ranks may differ; reading them takes a fraction of one."""
_SLOW = 0.2
"""Share of what NVLink or PCIe can carry, below which something is wrong."""
_LAUNCHERS = ("OMPI_", "PMIX_", "PMI_", "MPIRUN_", "FLUX_", "SLURM_", "TORCHELASTIC_", "PET_")


def check_local(question: Question) -> Iterator[Finding]:
    """A rank a GPU over NCCL; without GPUs as many as train here, and at least 2, over gloo."""
    if torch_folder() is None:
        yield Finding("all-reduce", Status.NOT_CHECKED, NO_TORCH)
        return
    gpus = visible_gpu_count() if config.settings().device != "cpu" else 0
    count = gpus or min(max(ranks_here(), 2), _MOST_ON_CPU)
    seconds = _seconds("all-reduce", question)
    ranks = [
        Topology(
            platform="doctor",
            rank=rank,
            world_size=count,
            local_rank=rank,
            local_world_size=count,
        )
        for rank in range(count)
    ]
    # These ranks are none of the job's: they meet by themselves, on this host.
    environ = {n: v for n, v in config.environ().items() if not n.startswith(_LAUNCHERS)}
    try:
        with tempfile.TemporaryDirectory(prefix="trainkit-doctor-") as folder:
            answers = _answers(ranks, seconds, {**environ, "TMPDIR": folder})
    except OSError as error:
        text = f"the ranks have no temporary folder to meet in: {error}"
        yield Finding("all-reduce", Status.NOT_CHECKED, text, "See the check disk.")
        return
    yield from judge("all-reduce", ranks, answers)


def check_across(question: Question) -> Iterator[Finding]:
    """The job's own ranks, wherever they are."""
    name = "all-reduce-across"
    if not question.across:
        yield Finding(name, Status.NOT_CHECKED, "not asked for", "--across, in all pods at once.")
        return
    if torch_folder() is None:
        yield Finding(name, Status.NOT_CHECKED, NO_TORCH)
        return
    topology = topology_or_none()
    ranks = [] if topology is None else ranks_across(topology)
    if topology is None or not ranks:
        yield Finding(name, Status.NOT_CHECKED, *_why_not(topology))
        return
    seconds = _seconds(name, question)
    yield from judge(name, ranks, _answers(ranks, seconds, None))


def ranks_across(topology: Topology) -> list[Topology]:
    """The ranks that this process is, or stands for; none where it takes no part."""
    if topology.rank is None or not topology.local_world_size or topology.world_size in (None, 1):
        return []
    if not topology.starts_ranks:
        return [topology]
    return [
        replace(topology, rank=topology.rank + n, local_rank=n, procs_to_launch=0)
        for n in range(topology.procs_to_launch)
    ]


def judge(name: str, ranks: list[Topology], answers: list[dict[str, Any]]) -> Iterator[Finding]:
    """What the ranks say."""
    failed = {r.rank: a for r, a in zip(ranks, answers, strict=True) if "error" in a}
    if failed:
        # A rank that hangs waits for one that failed.
        first = next((r for r, a in failed.items() if not a.get("hung")), min(failed))  # type: ignore[type-var]
        found = f"rank {first} of {ranks[0].world_size}: {failed[first]['error']}"
        values = {"failed": {str(rank): a["error"] for rank, a in failed.items()}}
        yield Finding(name, Status.BROKEN, found, _advice(name), values)
        return
    one = answers[0]
    values = {key: one[key] for key in ("backend", "world_size", "bandwidth", "limit", "limits")}
    values["hosts"] = one["hosts"]
    found = f"{one['world_size']} rank(s) on {len(one['hosts'])} host(s) sum over {one['backend']}"
    if one["bandwidth"] is None:
        yield Finding(name, Status.OK, found, values=values)
        return
    most = f"at most {speed(one['limit'])}, " if one["limit"] else ""
    found += f" at {speed(one['bandwidth'])} ({most}{one['limits']})"
    status, advice = Status.OK, ""
    if one["backend"] == "nccl" and one["limit"] and one["bandwidth"] < _SLOW * one["limit"]:
        status, advice = Status.WARNING, "NCCL_DEBUG=INFO shows which way it takes."
    yield Finding(name, status, found, advice, values)
    if name == "all-reduce-across":
        yield _clocks(one)


def _clocks(answer: Mapping[str, Any]) -> Finding:
    skew = answer["clocks"]
    values = {"skew": skew, "hosts": answer["hosts"]}
    found = f"the clocks of the ranks differ by {skew:.2f} s at most"
    if skew < _CLOCKS:
        return Finding("clock-across", Status.OK, found, values=values)
    advice = "Set the nodes' clocks by NTP: logs and leases are off by as much."
    return Finding("clock-across", Status.WARNING, found, advice, values)


def _answers(
    ranks: list[Topology], seconds: float, environ: Mapping[str, str] | None
) -> list[dict[str, Any]]:
    deadline = Deadline(_SHARE * seconds)
    # The ranks' own deadline is over first: theirs names who is missing. It is a moment on the
    # clock that all processes of this host share, since importing torch may take long.
    until = time.monotonic() + 0.8 * deadline.seconds
    module = "trainkit.doctor.devices.rank"
    programs = [
        Program(module, {"topology": rank.to_json(), "until": until}, environ) for rank in ranks
    ]
    return [program.answer(deadline) for program in programs]


def _seconds(name: str, question: Question) -> float:
    return seconds_of(next(entry for entry in CHECKS if entry.name == name), question)


def _advice(name: str) -> str:
    if name == "all-reduce":
        return "NCCL_DEBUG=INFO tells more; look at the checks gpu-kernel and shared-memory."
    return (
        "Run it in all pods of the job at once. Then look at network policies, the check sidecar, "
        "and NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME."
    )


def _why_not(topology: Topology | None) -> tuple[str, str]:
    if topology is None:
        return "the topology cannot be made out", ""
    if topology.world_size == 1:
        return "this is a job of one rank", ""
    if topology.world_size is None or (topology.rank is None and topology.is_elastic):
        return (
            "an elastic rendezvous decides who is which rank",
            "Start the doctor by it: torchrun … -m trainkit doctor --across.",
        )
    if topology.runs_mpirun or topology.awaits_mpirun:
        return (
            "mpirun starts the ranks",
            "Have mpirun start the doctor: mpirun … python -m trainkit doctor --across.",
        )
    return f"a {topology.role} is no rank of torch", ""
