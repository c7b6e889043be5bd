"""How CUDA tensors travel: what the MPI library can, and what the devices allow."""

import logging
import subprocess
import sys
from typing import Any

import torch
import torch.distributed as dist

from trainkit import config
from trainkit.errors import StrategyError, UsageError

__all__ = ["choose_transport", "reads_device_memory"]

log = logging.getLogger(__name__)

_TRANSPORTS = ("auto", "cuda-aware", "nccl", "staged")
_PROBE_TIMEOUT = 60.0
"""Seconds for a process that imports torch, opens a device and sends four bytes to itself."""
_LAUNCHERS = ("OMPI_", "PMIX_", "PRTE_", "PMI_", "HYDRA_", "MPI_LOCAL", "SLURM_", "I_MPI_")
"""Variables by which the probe would take itself for a rank of this very job."""


def choose_transport(request: str, world: Any, device: torch.device) -> str:
    """The way of CUDA tensors, the same on all ranks: collective over ``world``.

    Args:
        request: one of ``auto``, ``cuda-aware``, ``nccl`` and ``staged``.
        world: communicator over all ranks.
        device: of this rank; on the CPU there is nothing to choose.

    Raises:
        UsageError: an unknown request.
        StrategyError: what was asked for does not work here, or ranks have different devices.
    """
    if request not in _TRANSPORTS:
        raise UsageError(
            f"MPI transport {request!r} is not known. Known: {', '.join(_TRANSPORTS)}. "
            f"TRAINKIT_MPI_TRANSPORT sets it."
        )
    kinds: list[str] = world.allgather(device.type)
    if len(set(kinds)) > 1:
        shown = ", ".join(f"rank {rank}: {kind}" for rank, kind in enumerate(kinds[:8]))
        raise StrategyError(
            f"all ranks need the same kind of device, found {shown}. Grant GPUs to all hosts, or "
            f"set TRAINKIT_DEVICE=cpu on all of them."
        )
    if device.type != "cuda":
        return "host"
    if request in ("auto", "cuda-aware") and _all_probe(world, device):
        chosen = "cuda-aware"
    elif request == "cuda-aware":
        raise StrategyError(
            "transport 'cuda-aware' was asked for, and this MPI cannot send device memory: a "
            "process that tried with four bytes failed. Use an MPI that is built with CUDA, or "
            "TRAINKIT_MPI_TRANSPORT=auto."
        )
    else:
        why_not = _why_no_nccl(world, device)
        if request == "nccl" and why_not:
            raise StrategyError(f"transport 'nccl' was asked for, and {why_not}.")
        chosen = "nccl" if request == "nccl" or (request == "auto" and not why_not) else "staged"
    if world.Get_rank() == 0:
        log.info("CUDA tensors travel by %s", chosen)
    return chosen


def reads_device_memory(device: torch.device) -> bool:
    """Whether this MPI library sends device memory, as tried in a process of its own.

    A library that does not reads the address as host memory, and dies; and what it says of
    itself (MPIX_Query_cuda_support) has been wrong both ways.
    """
    environ = {
        name: value for name, value in config.environ().items() if not name.startswith(_LAUNCHERS)
    }
    command = [sys.executable, "-m", "trainkit.strategies.torch.mpi.probe", str(device)]
    try:
        done = subprocess.run(  # noqa: S603
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        log.info("the probe of a CUDA-aware MPI did not end in %.0f s", _PROBE_TIMEOUT)
        return False
    log.debug("probe of a CUDA-aware MPI: %d %s", done.returncode, done.stderr[-500:])
    return done.returncode == 0 and done.stdout.strip().endswith("works")


def _all_probe(world: Any, device: torch.device) -> bool:
    """One rank of each host tries, for all."""
    from mpi4py import MPI

    host = world.Split_type(MPI.COMM_TYPE_SHARED)
    works = host.bcast(reads_device_memory(device) if host.Get_rank() == 0 else None)
    host.Free()
    return all(world.allgather(works))


def _why_no_nccl(world: Any, device: torch.device) -> str:
    """Empty if NCCL can connect these ranks."""
    if not dist.is_nccl_available():
        own: str | None = None
    else:
        own = f"{torch.cuda.get_device_properties(device).uuid}"
    devices: list[str | None] = world.allgather(own)
    if None in devices:
        return f"torch has no NCCL on rank {devices.index(None)}"
    for rank, uuid in enumerate(devices):
        first = devices.index(uuid)
        if first != rank:
            return f"rank {first} and rank {rank} share a GPU ({uuid}), which NCCL refuses"
    return ""
