"""Whether NCCL is there and loads."""

from __future__ import annotations

from collections.abc import Iterator

from trainkit.doctor.devices.presence import nothing_to_check
from trainkit.doctor.finding import Finding, Question, Status

__all__ = ["check"]

_ADVICE = (
    "Install torch's own NCCL again (pip install --force-reinstall torch): another package, such "
    "as xgboost's nvidia-nccl, may have replaced it."
)


def check(question: Question) -> Iterator[Finding]:
    """Ask torch's NCCL for its version; this is a process of its own."""
    del question
    nothing = nothing_to_check("nccl", torch=True)
    if nothing is not None:
        yield nothing
        return
    try:
        import torch.cuda.nccl
        import torch.distributed as dist

        available = dist.is_available() and dist.is_nccl_available()
        version = ".".join(map(str, torch.cuda.nccl.version())) if available else ""
    except Exception as error:
        found = f"NCCL does not load: {type(error).__name__}: {error}"
        yield Finding("nccl", Status.BROKEN, found, _ADVICE)
        return
    if not available:
        found = f"torch {torch.__version__} is built without NCCL"
        yield Finding("nccl", Status.BROKEN, found, "Install a build of torch for CUDA.")
        return
    yield Finding("nccl", Status.OK, f"NCCL {version} loads", values={"version": version})
