"""The driver's CUDA against the one that torch is built for."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

from trainkit.doctor.devices.presence import nothing_to_check, torch_folder, torch_version
from trainkit.doctor.finding import Finding, Question, Status
from trainkit.resources.cgroups import read

__all__ = ["check", "judge"]


def check(question: Question) -> Iterator[Finding]:
    """Compare both versions; nothing of torch is imported, and no context made."""
    del question
    nothing = nothing_to_check("gpu-driver")
    if nothing is not None:
        yield nothing
        return
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        advice = (
            "The driver's libraries are not mounted into the container: it needs the NVIDIA "
            "container runtime, and NVIDIA_DRIVER_CAPABILITIES with compute and utility."
        )
        yield Finding("gpu-driver", Status.BROKEN, f"CUDA's driver does not load: {error}", advice)
        return
    number = ctypes.c_int(0)
    library.cuDriverGetVersion(ctypes.byref(number))
    driver = (number.value // 1000, number.value % 1000 // 10)
    folder = torch_folder()
    yield judge(driver, _release(), None if folder is None else torch_version(folder))


def judge(driver: tuple[int, int], release: str, torch: tuple[str, str | None] | None) -> Finding:
    """What the versions mean.

    Args:
        driver: newest CUDA that the driver knows: major and minor version.
        release: of the driver.
        torch: its version and the CUDA that it is built for; None where it is not installed.
    """
    known = f"{driver[0]}.{driver[1]}"
    found = f"driver {release} knows CUDA {known}"
    values: dict[str, str | None] = {"driver": release, "driver_cuda": known}
    if torch is None:
        return Finding("gpu-driver", Status.OK, f"{found}; torch is not installed", "", values)
    version, built = torch
    values |= {"torch": version, "torch_cuda": built}
    if built is None:
        found = f"torch {version} is built without CUDA, and there is a GPU"
        advice = "Install a build for CUDA, which is pip's default on Linux."
        return Finding("gpu-driver", Status.BROKEN, found, advice, values)
    found += f", torch {version} is built for {built}"
    major, minor = (int(part) for part in (*built.split("."), "0")[:2])
    if major > driver[0]:
        advice = (
            f"The driver is too old: update it on the node, or install a torch for CUDA "
            f"{driver[0]} (torch's own index has builds for older ones)."
        )
        return Finding("gpu-driver", Status.BROKEN, found, advice, values)
    if (major, minor) > driver:
        advice = (
            "Kernels that are compiled at run time (Triton, torch.compile) may not load: a newer "
            "driver is better."
        )
        return Finding("gpu-driver", Status.WARNING, found, advice, values)
    return Finding("gpu-driver", Status.OK, found, values=values)


def _release() -> str:
    text = read("/proc/driver/nvidia/version") or ""
    words = text.partition("\n")[0].split()
    return next((word for word in words if word[:1].isdigit() and "." in word), "unknown")
