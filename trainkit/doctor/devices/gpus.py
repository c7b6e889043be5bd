"""GPUs that were granted, and those that are visible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from trainkit import config
from trainkit.doctor.devices.presence import NO_GPU
from trainkit.doctor.finding import Finding, Question, Status
from trainkit.resources.gpus import gpu_was_asked_for, visible_gpu_count

__all__ = ["check", "judge"]


def check(question: Question) -> Iterator[Finding]:
    """Compare what was asked for with what is there."""
    del question
    yield judge(config.environ(), visible_gpu_count(), config.settings().device)


def judge(environ: Mapping[str, str], visible: int, device: str) -> Finding:
    """What the number of visible GPUs means.

    Args:
        environ: variables, which say what was granted.
        visible: GPUs that a rank could use.
        device: as TRAINKIT_DEVICE asks for: auto, cpu or cuda.
    """
    asked = _asked(environ, device)
    granted = _granted(environ)
    values = {"visible": visible, "granted": granted, "asked_by": asked}
    if device == "cpu" and visible:
        found = f"{visible} visible GPU(s) stay idle: TRAINKIT_DEVICE=cpu"
        return Finding("gpu", Status.WARNING, found, "Grant none, or remove it.", values)
    if visible == 0 and asked is None:
        return Finding("gpu", Status.NOT_CHECKED, NO_GPU, values=values)
    if visible == 0:
        advice = (
            "Does the container's limit name nvidia.com/gpu, does `nvidia-smi` work in it, and "
            "does the node have a driver and the NVIDIA container runtime?"
        )
        found = f"a GPU was granted or asked for ({asked}), and none is visible"
        return Finding("gpu", Status.BROKEN, found, advice, values)
    found = f"{visible} GPU(s) are visible"
    if granted is not None and "CUDA_VISIBLE_DEVICES" not in environ and visible < granted:
        found += f" of {granted} that NVIDIA_VISIBLE_DEVICES grants"
        advice = "One may have fallen off the bus: look at the node's kernel log for Xid errors."
        return Finding("gpu", Status.WARNING, found, advice, values)
    return Finding("gpu", Status.OK, found, values=values)


def _asked(environ: Mapping[str, str], device: str) -> str | None:
    if device == "cpu":
        return None
    if device == "cuda":
        return "TRAINKIT_DEVICE=cuda"
    if environ.get("PET_NPROC_PER_NODE") == "gpu":
        return "PET_NPROC_PER_NODE=gpu"
    return gpu_was_asked_for(environ)


def _granted(environ: Mapping[str, str]) -> int | None:
    """Devices that NVIDIA_VISIBLE_DEVICES lists; None where it lists none."""
    if gpu_was_asked_for({"NVIDIA_VISIBLE_DEVICES": environ.get("NVIDIA_VISIBLE_DEVICES", "")}):
        return len([part for part in environ["NVIDIA_VISIBLE_DEVICES"].split(",") if part.strip()])
    return None
