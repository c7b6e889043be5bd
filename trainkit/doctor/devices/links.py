"""What the way between ranks can carry at most: NVLink, PCIe, the network's interface."""

from __future__ import annotations

import socket

from trainkit.coordination.network import interface_towards
from trainkit.resources.cgroups import read

__all__ = ["between_gpus", "network", "speed_of_interface"]

_NVLINK = {1: 20e9, 2: 25e9, 3: 25e9, 4: 25e9, 5: 50e9}
"""Bytes a second of one link in one direction, by the version that the driver tells."""
_PCIE = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.56e9}
"""Bytes a second of one lane, by generation."""
_LINKS = 18
"""Links of a GPU at most."""


def between_gpus(index: int) -> tuple[float | None, str]:
    """Bytes a second that GPU ``index`` can send, and over what; None where nothing tells."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return None, "nothing tells"
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        active, speed = 0, 0.0
        for link in range(_LINKS):
            try:
                if not pynvml.nvmlDeviceGetNvLinkState(handle, link):
                    continue
                version = pynvml.nvmlDeviceGetNvLinkVersion(handle, link)
            except pynvml.NVMLError:
                break
            active += 1
            speed += _NVLINK.get(int(version), 25e9)
        if active:
            return speed, f"{active} NVLinks"
        generation = pynvml.nvmlDeviceGetMaxPcieLinkGeneration(handle)
        width = pynvml.nvmlDeviceGetMaxPcieLinkWidth(handle)
        return _PCIE.get(generation, 0.985e9) * width, f"PCIe {generation} × {width}"
    except pynvml.NVMLError:
        return None, "nothing tells"
    finally:
        pynvml.nvmlShutdown()


def network(host: str | None, port: int) -> tuple[float | None, str]:
    """Bytes a second of the interface towards ``host``, and its name."""
    towards = interface_towards(host, port) if host is not None else None
    if towards is None:  # the master itself, or a way over loopback
        towards = _first_interface()
    if towards is None:
        return None, "nothing tells"
    name, _ = towards
    speed = speed_of_interface(name)
    return speed, f"interface {name}" if speed else f"interface {name}, whose speed is not told"


def speed_of_interface(name: str, root: str = "/") -> float | None:
    """Bytes a second of an interface; None where it is virtual and tells nothing."""
    text = (read(f"{root.rstrip('/')}/sys/class/net/{name}/speed") or "").strip()
    return int(text) * 1e6 / 8 if text.isdecimal() and int(text) > 0 else None


def _first_interface() -> tuple[str, str] | None:
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    return (names[0], "") if names else None
