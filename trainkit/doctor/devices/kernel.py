"""Whether each GPU computes: a real kernel on each, in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainkit.doctor.checks import CHECKS, seconds_of
from trainkit.doctor.devices.presence import nothing_to_check
from trainkit.doctor.devices.program import Program
from trainkit.doctor.finding import Finding, Question, Status
from trainkit.resources.gpus import visible_gpu_count
from trainkit.waiting import Deadline

__all__ = ["check", "judge"]

_SHARE = 0.9
"""Of the check's deadline: what is left is for its own words."""


def check(question: Question) -> Iterator[Finding]:
    """Run a kernel on all GPUs at the same time; the slow and the bad are named."""
    nothing = nothing_to_check("gpu-kernel", torch=True)
    if nothing is not None:
        yield nothing
        return
    entry = next(entry for entry in CHECKS if entry.name == "gpu-kernel")
    deadline = Deadline(_SHARE * seconds_of(entry, question))
    count = visible_gpu_count()
    programs = [
        Program("trainkit.doctor.devices.multiply", {"index": index, "mig": count > 1})
        for index in range(count)
    ]
    for index, program in enumerate(programs):
        yield judge(index, program.answer(deadline))


def judge(index: int, answer: dict[str, Any]) -> Finding:
    """What the program of the GPU ``index`` says."""
    label = f"cuda:{index}"
    if "skipped" in answer:
        return Finding("gpu-kernel", Status.NOT_CHECKED, f"{label}: {answer['skipped']}")
    if "error" in answer:
        advice = (
            "The GPU or its driver is broken, or this torch has no code for it: look at the "
            "node's kernel log for Xid errors, and at the check gpu-driver."
        )
        found = f"{label}: {answer['error']}"
        return Finding("gpu-kernel", Status.BROKEN, found, advice, {"index": index})
    found = f"{label} ({answer['name']}) computes: {answer['flops'] / 1e12:.1f} TFLOP/s in bf16"
    return Finding("gpu-kernel", Status.OK, found, values={"index": index, **answer})
