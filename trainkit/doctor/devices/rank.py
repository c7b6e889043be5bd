"""A program: one rank of an all-reduce, met as a job's ranks meet."""

from __future__ import annotations

import socket
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from trainkit.config import settings
from trainkit.coordination import Communicator
from trainkit.doctor.devices import links
from trainkit.strategies.torch.device import choose_device
from trainkit.strategies.torch.link import TorchLink
from trainkit.strategies.torch.process_group import close_process_group, open_process_group
from trainkit.topology import Role, Topology

__all__ = ["main"]

_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}
_ROUNDS = 5


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Meet the other ranks, sum what is known, and measure.

    Args:
        request: ``topology`` of this rank, and ``until`` when on the monotonic clock to wait.

    Returns:
        ``bandwidth`` of the bus and its ``limit`` in bytes a second, and what ``limits`` it;
        ``clocks``: seconds by which the clocks of all ranks differ at most; ``hosts``.
    """
    values = request["topology"]
    topology = Topology(**{**values, "role": Role(values["role"])})
    timeout = max(1.0, request["until"] - time.monotonic())
    device = choose_device(
        topology.local_rank or 0, topology.local_world_size, request=settings().device
    )
    torch.set_num_threads(1)
    link = TorchLink.open(topology, timeout) if topology.world_size != 1 else None
    communicator = link.communicator if link is not None else Communicator.solo()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    open_process_group(link, topology, device, timedelta(seconds=timeout))
    _check_sum(device, communicator)
    communicator.barrier("reading the clocks")
    clocks = communicator.all_gather_object(time.time())
    bandwidth = _bandwidth(device, communicator)
    hosts = communicator.all_gather_object(socket.gethostname())
    limit, limits = _limit(device, topology)
    close_process_group(failed=False)
    if link is not None:
        link.close()
    return {
        "backend": "nccl" if device.type == "cuda" else "gloo",
        "world_size": communicator.world_size,
        "bandwidth": bandwidth,
        "limit": limit,
        "limits": limits,
        "clocks": max(clocks) - min(clocks),
        "hosts": sorted(set(hosts)),
    }


def _check_sum(device: torch.device, communicator: Communicator) -> None:
    world = communicator.world_size
    tensor = torch.full((1024,), float(communicator.rank + 1), device=device)
    dist.all_reduce(tensor)
    expected = world * (world + 1) / 2
    if not bool((tensor == expected).all()):
        raise RuntimeError(f"the sum over ranks is {tensor[0].item()} and not {expected}")


def _bandwidth(device: torch.device, communicator: Communicator) -> float | None:
    """Bytes a second on the bus, as nccl-tests count them; None for one rank."""
    world = communicator.world_size
    if world == 1:
        return None
    tensor = torch.zeros(_BYTES[device.type] // 4, device=device)
    seconds = []
    for number in range(_ROUNDS + 1):
        communicator.barrier("measuring")
        begin = time.perf_counter()
        dist.all_reduce(tensor)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number:  # the first one makes connections
            seconds.append(time.perf_counter() - begin)
    slowest = communicator.all_gather_object(sorted(seconds)[len(seconds) // 2])
    return 2 * (world - 1) / world * tensor.nbytes / float(max(slowest))


def _limit(device: torch.device, topology: Topology) -> tuple[float | None, str]:
    """Bytes a second that the slowest part of the way can carry, and what that is."""
    if topology.world_size != topology.local_world_size:
        return links.network(topology.master_addr, topology.master_port or 0)
    if device.type == "cuda":
        return links.between_gpus(device.index or 0)
    tensor = torch.zeros(_BYTES["cpu"], dtype=torch.uint8)
    target = torch.empty_like(tensor)
    target.copy_(tensor)
    begin = time.perf_counter()
    for _ in range(_ROUNDS):
        target.copy_(tensor)
    return _ROUNDS * tensor.nbytes / (time.perf_counter() - begin), "one copy in memory"
