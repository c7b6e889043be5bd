"""Which device a rank of XGBoost trains on; never silently the CPU, never silently fewer GPUs."""

import ctypes.util
import logging
from collections.abc import Mapping
from importlib.util import find_spec

import xgboost

from trainkit import config
from trainkit.errors import DependencyError, EnvironmentFaultError
from trainkit.resources.gpus import gpu_was_asked_for, visible_gpu_count

__all__ = ["choose_device"]

log = logging.getLogger(__name__)


def choose_device(
    local_rank: int, local_world_size: int, *, world_size: int, request: str = "auto"
) -> str:
    """What to give XGBoost as ``device``: ``cpu`` or ``cuda``.

    XGBoost takes ``cuda`` for the first device that the process sees, so where a rank sees
    several, CUDA_VISIBLE_DEVICES is narrowed to its own.

    Args:
        local_rank: of this process on this host.
        local_world_size: ranks of the job on this host.
        world_size: ranks of the job.
        request: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        EnvironmentFaultError: a GPU was asked for and cannot be used, or there are more
            ranks than GPUs.
        DependencyError: this XGBoost cannot use the GPUs that are there.
    """
    if request == "cpu":
        return "cpu"
    environ = config.environ()
    count = visible_gpu_count()
    if count == 0:
        _refuse_silent_cpu(request, environ)
        return "cpu"
    _check_build(count, world_size)
    shown = _shown(environ)
    if count == 1 and local_world_size > 1 and len(shown) == 1:
        return "cuda"  # each rank was shown one device of its own
    if local_rank >= count:
        raise EnvironmentFaultError(
            f"local rank {local_rank} has no GPU: this host shows {count} and runs "
            f"{local_world_size} ranks. Start as many ranks as GPUs (nprocPerNode, "
            f"--nproc-per-node), or ask for the CPU with TRAINKIT_DEVICE=cpu."
        )
    if local_rank == 0 and count > local_world_size:
        log.warning(
            "%d of %d granted GPUs stay idle: this host runs %d rank(s). Start one rank a GPU "
            "(a TrainJob of XGBoost does; a pod of an XGBoostJob is one rank, whatever it has), "
            "or grant fewer GPUs.",
            count - local_world_size,
            count,
            local_world_size,
        )
    if count > 1:
        own = shown[local_rank] if shown else str(local_rank)
        config.set_environ({"CUDA_VISIBLE_DEVICES": own})
    return "cuda"


def _shown(environ: Mapping[str, str]) -> list[str]:
    visible = environ.get("CUDA_VISIBLE_DEVICES", "")
    return [part.strip() for part in visible.split(",") if part.strip()]


def _refuse_silent_cpu(request: str, environ: Mapping[str, str]) -> None:
    asked = "device='cuda' or TRAINKIT_DEVICE=cuda" if request == "cuda" else None
    if environ.get("PET_NPROC_PER_NODE") == "gpu":
        asked = "PET_NPROC_PER_NODE=gpu"
    asked = asked or gpu_was_asked_for(environ)
    if asked is None:
        return
    raise EnvironmentFaultError(
        f"a GPU was granted or asked for ({asked}), and none is visible here. Look at "
        f"`nvidia-smi` in the pod and at its GPU limit, or ask for the CPU with "
        f"TRAINKIT_DEVICE=cpu."
    )


def _check_build(count: int, world_size: int) -> None:
    build = xgboost.build_info()
    if not build.get("USE_CUDA"):
        raise DependencyError(
            f"{count} GPU(s) are visible here, and this XGBoost {xgboost.__version__} is built "
            f'without CUDA (the package xgboost-cpu, perhaps). Install "trainkit[xgboost]", or '
            f"ask for the CPU with TRAINKIT_DEVICE=cpu."
        )
    if world_size > 1 and not _has_nccl(build):
        raise DependencyError(
            f"{world_size} ranks of XGBoost meet on GPUs through NCCL, and there is none: install "
            f"the package nvidia-nccl of your CUDA version (nvidia-nccl-cu12, -cu13)."
        )


def _has_nccl(build: Mapping[str, object]) -> bool:
    if not build.get("USE_NCCL"):
        return False
    if not build.get("USE_DLOPEN_NCCL"):
        return True
    try:
        packaged = find_spec("nvidia.nccl") is not None
    except ModuleNotFoundError:  # there is no nvidia at all
        packaged = False
    return packaged or ctypes.util.find_library("nccl") is not None
