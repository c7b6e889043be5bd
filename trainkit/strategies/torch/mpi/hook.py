"""DDP's gradients over MPI: averaged in the bucket, where they lie."""

from collections.abc import Callable

import torch
from torch.distributed import GradBucket
from torch.futures import Future

from trainkit.strategies.torch.mpi.group import MpiGroup

__all__ = ["average", "average_in_bf16"]

Hook = Callable[[MpiGroup, GradBucket], Future[torch.Tensor]]


def average(group: MpiGroup, bucket: GradBucket) -> Future[torch.Tensor]:
    """Average a bucket in its own precision.

    Without a hook DDP would first divide each gradient, in a pass of its own over all of them;
    and could not know that this memory is reduced again in each step.
    """
    return group.average(bucket.buffer(), keep=True)


def average_in_bf16(group: MpiGroup, bucket: GradBucket) -> Future[torch.Tensor]:
    """Average a bucket as bf16: half of the bytes, 8 bits of mantissa; summed up in fp32."""
    buffer = bucket.buffer()
    if buffer.dtype not in (torch.float32, torch.float64):
        return average(group, bucket)
    short = buffer.to(torch.bfloat16)

    def widen(done: Future[torch.Tensor]) -> torch.Tensor:
        return buffer.copy_(done.value())

    return group.average(short).then(widen)
