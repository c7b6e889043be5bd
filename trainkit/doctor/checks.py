"""The one table of checks, in the order in which they are shown."""

from __future__ import annotations

from dataclasses import dataclass

from trainkit.config import settings
from trainkit.doctor.finding import Question, Status

__all__ = ["CHECKS", "Entry", "seconds_of"]

_MEETING = 60.0
"""Seconds beyond TRAINKIT_TIMEOUT for what happens when the ranks have met."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A check, how long it may take, and what it means if it takes longer or crashes."""

    name: str
    where: str
    """``module:function``, imported in the check's own process."""
    seconds: float | None = 20.0
    """Deadline; None: as long as ranks wait for each other, and a minute."""
    measures: bool = False
    """Whether it measures a speed, so that nothing else may run beside it."""
    hang: Status = Status.NOT_CHECKED
    """What it means when it does not end, or dies."""
    advice: str = ""
    """What to do then."""


_GPU = (
    "The driver hangs or crashes. Look at `nvidia-smi` and at the node's kernel log for Xid "
    "errors; reset the GPU or take the node out of service."
)
_STORE = (
    "A save would hang as well. Look at the mount (`mount`, the node's kernel log), or at the "
    "network to the object store."
)

CHECKS = (
    Entry("topology", "trainkit.doctor.job:check"),
    Entry("gpu", "trainkit.doctor.devices.gpus:check", hang=Status.BROKEN, advice=_GPU),
    Entry("gpu-driver", "trainkit.doctor.devices.driver:check", hang=Status.BROKEN, advice=_GPU),
    Entry("gpu-health", "trainkit.doctor.devices.health:check", hang=Status.BROKEN, advice=_GPU),
    Entry(
        "gpu-kernel",
        "trainkit.doctor.devices.kernel:check",
        120.0,
        measures=True,
        hang=Status.BROKEN,
        advice=_GPU,
    ),
    Entry("nccl", "trainkit.doctor.devices.nccl:check", 120.0, hang=Status.BROKEN),
    Entry(
        "all-reduce",
        "trainkit.doctor.devices.reduce:check_local",
        120.0,
        measures=True,
        hang=Status.BROKEN,
        advice="Set NCCL_DEBUG=INFO and run it again; try NCCL_P2P_DISABLE=1 to see whether the "
        "way between the GPUs is the cause.",
    ),
    Entry(
        "all-reduce-across",
        "trainkit.doctor.devices.reduce:check_across",
        None,
        measures=True,
        hang=Status.BROKEN,
        advice="Ranks met and then hung: look at network policies, a sidecar, and "
        "NCCL_SOCKET_IFNAME; NCCL_DEBUG=INFO tells more.",
    ),
    Entry("shared-memory", "trainkit.doctor.shared_memory:check"),
    Entry("memory", "trainkit.doctor.memory:check"),
    Entry("cpu", "trainkit.doctor.cpus:check"),
    Entry("limits", "trainkit.doctor.limits:check"),
    Entry("disk", "trainkit.doctor.disk:check", hang=Status.BROKEN, advice=_STORE),
    Entry("peers", "trainkit.doctor.peers:check", 40.0, hang=Status.WARNING),
    Entry(
        "checkpoint",
        "trainkit.doctor.store:check_checkpoint",
        120.0,
        measures=True,
        hang=Status.BROKEN,
        advice=_STORE,
    ),
    Entry(
        "local-tier",
        "trainkit.doctor.store:check_local_tier",
        120.0,
        measures=True,
        hang=Status.BROKEN,
        advice=_STORE,
    ),
    Entry("clock", "trainkit.doctor.clock:check"),
    Entry("sidecar", "trainkit.doctor.sidecar:check"),
)


def seconds_of(entry: Entry, question: Question) -> float:
    """The deadline of ``entry``, in seconds."""
    if question.timeout is not None:
        return question.timeout
    return entry.seconds if entry.seconds is not None else settings().timeout + _MEETING
