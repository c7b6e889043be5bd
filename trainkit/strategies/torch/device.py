"""Which device a rank trains on; never silently the CPU, never silently fewer GPUs."""

import logging
from collections.abc import Mapping

import torch

from trainkit import config
from trainkit.errors import EnvironmentFaultError
from trainkit.resources.cpus import cpu_limit
from trainkit.resources.gpus import gpu_was_asked_for, visible_gpu_count

__all__ = ["choose_device", "limit_threads"]

log = logging.getLogger(__name__)


def choose_device(
    local_rank: int,
    local_world_size: int,
    *,
    request: str = "auto",
    environ: Mapping[str, str] | None = None,
) -> torch.device:
    """The device of the rank ``local_rank`` of this host.

    Args:
        local_rank: of this process on this host.
        local_world_size: ranks of the job on this host.
        request: ``auto``, ``cpu`` or ``cuda``.
        environ: where to see whether a GPU was asked for; this process's by default.

    Raises:
        EnvironmentFaultError: a GPU was asked for and cannot be used, or there are more
            ranks than GPUs.
    """
    if request == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        _refuse_silent_cpu(request, config.environ() if environ is None else environ)
        return torch.device("cpu")
    if count == 1 and local_world_size > 1 and _one_device_each(environ):
        return torch.device("cuda", 0)
    if local_rank >= count:
        raise EnvironmentFaultError(
            f"local rank {local_rank} has no GPU: this host shows {count} and runs "
            f"{local_world_size} ranks. Start as many ranks as GPUs (nprocPerNode, "
            f"--nproc-per-node), or ask for the CPU with TRAINKIT_DEVICE=cpu."
        )
    if local_rank == 0 and count > local_world_size:
        idle = ", ".join(f"cuda:{index}" for index in range(local_world_size, count))
        log.warning(
            "%d of %d granted GPUs stay idle (%s): this host runs %d rank(s). Start one rank a "
            "GPU (nprocPerNode, --nproc-per-node), or grant fewer GPUs.",
            count - local_world_size,
            count,
            idle,
            local_world_size,
        )
    return torch.device("cuda", local_rank)


def limit_threads(local_world_size: int) -> None:
    """Hold torch's threads to this rank's share of the CPU limit.

    torch starts a thread for every core of the host, whatever the pod may use of them, and
    threads that wait for throttled ones burn the rest. A user's OMP_NUM_THREADS stands.
    """
    if config.environ().get("OMP_NUM_THREADS"):
        return
    limit, _ = cpu_limit()
    share = max(1, int(limit) // local_world_size)
    if share < torch.get_num_threads():
        torch.set_num_threads(share)


def _one_device_each(environ: Mapping[str, str] | None) -> bool:
    """Whether each rank was shown one device of its own (torchrun --virtual-local-rank, Slurm)."""
    variables = config.environ() if environ is None else environ
    shown = variables.get("CUDA_VISIBLE_DEVICES", "")
    return len([part for part in shown.split(",") if part.strip()]) == 1


def _refuse_silent_cpu(request: str, environ: Mapping[str, str]) -> None:
    asked = "device='cuda' or TRAINKIT_DEVICE=cuda" if request == "cuda" else None
    if environ.get("PET_NPROC_PER_NODE") == "gpu":
        asked = "PET_NPROC_PER_NODE=gpu"
    variable = asked or gpu_was_asked_for(environ)
    if variable is None and visible_gpu_count() > 0:
        variable = f"{visible_gpu_count()} visible on this host"
    if variable is None:
        return
    built = torch.version.cuda
    cause = (
        "this torch is built without CUDA"
        if built is None
        else f"CUDA {built} of this torch cannot use one: no device, or a driver that is too old"
    )
    raise EnvironmentFaultError(
        f"a GPU was granted or asked for ({variable}), and {cause}. Look at `nvidia-smi` in the "
        f"pod and at its GPU limit, or ask for the CPU with TRAINKIT_DEVICE=cpu."
    )
