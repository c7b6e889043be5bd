"""What the driver says of each GPU: memory errors, and whether somebody else uses it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainkit.doctor.devices.presence import nothing_to_check
from trainkit.doctor.finding import Finding, Question, Status
from trainkit.doctor.sizes import size

__all__ = ["check"]

_IN_USE = 0.1
"""Share of a GPU's memory that the driver itself never takes."""


def check(question: Question) -> Iterator[Finding]:
    """Ask NVML of each GPU of this container."""
    del question
    nothing = nothing_to_check("gpu-health")
    if nothing is not None:
        yield nothing
        return
    try:
        import pynvml
    except ImportError:
        text = "nvidia-ml-py is not installed"
        yield Finding("gpu-health", Status.NOT_CHECKED, text, "pip install nvidia-ml-py")
        return
    try:
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            yield _of_device(pynvml, index, pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError as error:
        advice = (
            "`nvidia-smi` in the pod shows the same. After an update of the driver the node has "
            "to be restarted."
        )
        yield Finding("gpu-health", Status.BROKEN, f"the driver answers: {error}", advice)


def _of_device(pynvml: Any, index: int, handle: Any) -> Finding:
    def ask(function: str, *arguments: Any) -> Any:
        """An answer of NVML's; None where this GPU has no such thing."""
        try:
            return getattr(pynvml, function)(handle, *arguments)
        except (pynvml.NVMLError, AttributeError):
            return None

    name = ask("nvmlDeviceGetName") or "GPU"
    name = name.decode() if isinstance(name, bytes) else name
    memory = ask("nvmlDeviceGetMemoryInfo")
    errors = ask(
        "nvmlDeviceGetTotalEccErrors",
        pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
        pynvml.NVML_VOLATILE_ECC,
    )
    rows = ask("nvmlDeviceGetRemappedRows")
    label = f"GPU {index} ({name})"
    values = {"index": index, "name": name, "uncorrected_errors": errors}
    values["memory"] = memory.total if memory else None
    values["memory_used"] = memory.used if memory else None
    replace = "Take the node out of service, and have the GPU reset or replaced."
    if rows is not None and rows[3]:
        found = f"{label}: rows of its memory could not be remapped"
        return Finding("gpu-health", Status.BROKEN, found, replace, values)
    if errors:
        found = f"{label}: {errors} uncorrected memory error(s) since its last reset"
        return Finding("gpu-health", Status.WARNING, found, replace, values)
    if rows is not None and rows[2]:
        found = f"{label}: rows of its memory wait for a reset to be remapped"
        return Finding("gpu-health", Status.WARNING, found, "Have the GPU reset.", values)
    if memory and memory.used > _IN_USE * memory.total:
        found = f"{label}: {size(memory.used)} of {size(memory.total)} are in use already"
        advice = "`nvidia-smi` on the node shows whose process it is; one left over holds memory."
        return Finding("gpu-health", Status.WARNING, found, advice, values)
    room = f", {size(memory.total)}" if memory else ""
    return Finding("gpu-health", Status.OK, f"{label}{room}: no errors", values=values)
