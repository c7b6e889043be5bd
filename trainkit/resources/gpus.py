"""GPUs that this process may use, and whether one was asked for; never touches CUDA.

A process that has called CUDA cannot fork ranks any more, so the devices are counted through
NVML, or from what the driver shows in the file system.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainkit import config

TYPE_CHECKING = False  # typing itself is a tenth of what `trainkit env` imports
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Gpu", "count_visible", "gpu_was_asked_for", "visible_gpu_count"]

_ID_PREFIXES = ("GPU-", "MIG-")
_NUMBER = re.compile("[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device, as far as the driver tells."""

    uuid: str = ""
    """Such as ``GPU-8d3f…``; empty where it is not known."""
    migs: tuple[str, ...] = ()
    """Ids of its MIG devices, if it is partitioned: each counts as a GPU of its own."""


def visible_gpu_count() -> int:
    """GPUs that a rank of this process could use, one rank each; 0 where there is none.

    CUDA_VISIBLE_DEVICES is honoured as CUDA does, but for MIG: CUDA shows a process the first
    of several MIG devices only, and here each counts, since each rank can be given its own.
    """
    root = "/"
    if not _driver_is_there(root):
        return 0
    gpus = _from_nvml()
    if gpus is None:
        gpus = from_driver_files(root)
    return count_visible(gpus, config.environ().get("CUDA_VISIBLE_DEVICES"))


def count_visible(gpus: Sequence[Gpu], requested: str | None) -> int:
    """How many of ``gpus`` the value of CUDA_VISIBLE_DEVICES leaves visible.

    Args:
        gpus: the devices of this container.
        requested: the variable's value. None: all. Else the first entry that is no device
            (-1, NoDevFiles, an index out of range, an unknown id, an empty one) ends the list,
            and one that is listed twice makes it void, as in CUDA.
    """
    if requested is None:
        return sum(len(gpu.migs) or 1 for gpu in gpus)
    found: list[str] = []
    for entry in (part.strip() for part in requested.split(",")):
        device = _resolve(gpus, entry)
        if device is None:
            break
        if device in found:
            return 0
        found.append(device)
    return len(found)


def _resolve(gpus: Sequence[Gpu], entry: str) -> str | None:
    """A name for the device that ``entry`` means, or None."""
    if _NUMBER.fullmatch(entry):
        return f"#{int(entry)}" if int(entry) < len(gpus) else None
    if not entry.startswith(_ID_PREFIXES):
        return None
    is_mig = entry.startswith("MIG-")
    known = [id for gpu in gpus for id in (gpu.migs if is_mig else (gpu.uuid,)) if id]
    if not known:
        # The driver's files name no ids, so the entry is believed, if there is a device at all.
        return entry if gpus else None
    matches = [id for id in known if id.startswith(entry)]  # an id may be shortened
    return matches[0] if len(matches) == 1 else None


def gpu_was_asked_for(environ: Mapping[str, str]) -> str | None:
    """The variable that says a GPU was granted to this process, or None.

    A pod cannot see its own limits. What counts: an id in CUDA_VISIBLE_DEVICES, or ids in
    NVIDIA_VISIBLE_DEVICES, which Kubernetes' device plug-in writes. NVIDIA_VISIBLE_DEVICES=all
    does not: every CUDA base image sets it, also in a pod that asked for no GPU. An explicit
    CUDA_VISIBLE_DEVICES without a device (empty, -1) says that none is wanted, whatever else.
    """
    chosen = environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        first = chosen.partition(",")[0].strip()
        is_device = _NUMBER.fullmatch(first) or first.startswith(_ID_PREFIXES)
        return "CUDA_VISIBLE_DEVICES" if is_device else None
    granted = environ.get("NVIDIA_VISIBLE_DEVICES", "").strip()
    if granted.lower() in ("", "void", "none", "all", "nodevfiles", "-1"):
        return None
    return "NVIDIA_VISIBLE_DEVICES"


def _driver_is_there(root: str) -> bool:
    """Whether a driver shows anything; spares machines without GPUs the import of NVML."""
    if os.path.exists(os.path.join(root, "proc/driver/nvidia")):
        return True
    try:
        devices = os.listdir(os.path.join(root, "dev"))
    except OSError:
        return False
    # dxg: WSL; nvhost, nvgpu: Jetson.
    return any(name.startswith(("nvidia", "nvhost", "nvgpu", "dxg")) for name in devices)


def from_driver_files(root: str) -> list[Gpu]:
    """Devices by /proc/driver/nvidia/gpus, else by /dev/nvidia<N>."""
    folder = os.path.join(root, "proc/driver/nvidia/gpus")
    try:
        buses = sorted(os.listdir(folder))
    except OSError:
        buses = []
    if buses:
        return [Gpu(_uuid_of(os.path.join(folder, bus, "information"))) for bus in buses]
    try:
        devices = os.listdir(os.path.join(root, "dev"))
    except OSError:
        return []
    return [Gpu() for name in devices if re.fullmatch("nvidia[0-9]+", name)]


def _uuid_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            found = re.search(r"GPU UUID:\s*(GPU-\S+)", file.read())
    except OSError:
        return ""
    # Without root rights the driver writes question marks.
    return found[1] if found and "?" not in found[1] else ""


def _from_nvml() -> list[Gpu] | None:
    """Devices by NVML; None where its binding or library is missing or fails."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handles = [
            pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
        ]
        return [Gpu(_text(pynvml.nvmlDeviceGetUUID(h)), _migs(pynvml, h)) for h in handles]
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _migs(pynvml: Any, handle: Any) -> tuple[str, ...]:
    try:
        current, _ = pynvml.nvmlDeviceGetMigMode(handle)
        most = pynvml.nvmlDeviceGetMaxMigDeviceCount(handle) if current else 0
    except pynvml.NVMLError:
        return ()  # a device that knows no MIG
    ids = []
    for index in range(most):
        try:
            mig = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            ids.append(_text(pynvml.nvmlDeviceGetUUID(mig)))
        except pynvml.NVMLError:
            continue  # a free place, or one that this container may not use
    return tuple(ids)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # bytes before pynvml 11.5
