"""Data parallel: every rank holds the whole model, gradients are averaged."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from trainkit.coordination import Communicator, Store
from trainkit.strategies.torch.gloo_threads import let_gloo_finish
from trainkit.strategies.torch.link import TorchLink
from trainkit.strategies.torch.process_group import close_process_group, open_process_group
from trainkit.strategies.torch.single import Single
from trainkit.topology import Topology

__all__ = ["DDP"]

_OPS = {
    "sum": dist.ReduceOp.SUM,
    "mean": dist.ReduceOp.SUM,
    "min": dist.ReduceOp.MIN,
    "max": dist.ReduceOp.MAX,
}


class DDP(Single):
    """torch's DistributedDataParallel; at world size 1 no wrapper, so no cost."""

    name = "ddp"

    def __init__(self, *, precision: str | None = None, device: str = "auto") -> None:
        """Prepare; see ``Single``."""
        super().__init__(precision=precision, device=device)
        self.link: TorchLink | None = None
        self._bucket_cap_mb: float | None = None
        """MiB of gradients that go together; torch's own choice by default."""

    def connect(self, topology: Topology, timeout: float) -> None:
        """See ``Strategy.connect``: NCCL among GPUs, gloo among CPUs."""
        self._take_device(topology)
        if topology.world_size == 1:
            self.communicator = Communicator.solo()
        else:
            self.link = TorchLink.open(topology, timeout)
            self.communicator = self.link.communicator
        open_process_group(self.link, topology, self._device, timedelta(seconds=timeout))
        if self.link is not None:
            self.link.arrived()

    def watch_store(self) -> Store:
        """See ``Strategy.watch_store``."""
        if self.link is None:
            return super().watch_store()
        return self.link.second_connection("watch")

    def setup(
        self,
        model: Any,
        *,
        blocks: Sequence[type | str] | None = None,
        activation_checkpointing: bool = False,
    ) -> Any:
        """Move ``model`` to the device and wrap it; rank 0's parameters go to all ranks."""
        model = super().setup(
            model, blocks=blocks, activation_checkpointing=activation_checkpointing
        )
        trains = any(parameter.requires_grad for parameter in model.parameters())
        if self.communicator.world_size == 1 or not trains:
            return model
        devices = [self._device] if self._device.type == "cuda" else None
        # Views: gradients live in the buckets that are sent, so nothing is copied there.
        return DistributedDataParallel(
            model,
            device_ids=devices,
            gradient_as_bucket_view=True,
            bucket_cap_mb=self._bucket_cap_mb,
        )

    def all_reduce(self, value: Any, op: str) -> Any:
        """See ``Strategy.all_reduce``: a tensor gives one where it was, a number gives a number.

        A mean of whole numbers is a float; no gradient flows through.
        """
        if self.communicator.world_size == 1:
            return value
        if isinstance(value, torch.Tensor):
            tensor = value.detach().to(self._device, copy=True)
        else:
            exact = torch.int64 if isinstance(value, int) else torch.float64
            tensor = torch.tensor(value, dtype=exact, device=self._device)
        dist.all_reduce(tensor, _OPS[op])
        if op == "mean":
            tensor = tensor / self.communicator.world_size
        return tensor.to(value.device) if isinstance(value, torch.Tensor) else tensor.item()

    @contextmanager
    def no_sync(self, model: Any) -> Iterator[None]:
        """See ``Strategy.no_sync``."""
        wrapped = getattr(model, "_orig_mod", model)
        if isinstance(wrapped, DistributedDataParallel):
            with wrapped.no_sync():
                yield
        else:
            yield

    @property
    def native(self) -> Any:
        """torch's default process group."""
        return dist.group.WORLD

    def close(self, *, failed: bool = False) -> None:
        """See ``Strategy.close``."""
        if self.link is not None and not failed:
            self.link.await_arrivals()
        close_process_group(failed=failed)
        if self.link is not None:
            self.link.close(failed=failed)
        let_gloo_finish()  # at last: what was under way ends when the others come to it
