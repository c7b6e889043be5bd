"""Tensors of any layout and device as what MPI takes: flat, contiguous, at an address it reads."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from trainkit.strategies.torch.mpi.staging import CHUNK, CudaLanes, pipeline

__all__ = ["Lending"]


class Lending:
    """Lends tensors to MPI, on the communication thread of one process group."""

    def __init__(self, *, cuda_aware: bool) -> None:
        """Remember whether MPI reads device memory."""
        self._cuda_aware = cuda_aware
        self._lanes: dict[torch.device, CudaLanes] = {}

    @staticmethod
    def mark(tensors: Sequence[torch.Tensor]) -> Any:
        """On the calling thread: the moment at which ``tensors`` are as they are meant."""
        if not tensors or not tensors[0].is_cuda:
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(tensors[0].device))
        return event

    def whole(
        self,
        ready: Any,
        sources: Sequence[torch.Tensor],
        targets: Sequence[torch.Tensor],
        exchange: Callable[[list[torch.Tensor], list[torch.Tensor]], None],
    ) -> None:
        """Call ``exchange(sources, targets)`` with flat ones, and bring the targets back.

        Args:
            ready: what ``mark`` returned for them.
            sources: to be read.
            targets: to be written.
            exchange: the collective.
        """
        self._begin(ready, [*sources, *targets])
        flat_sources = [self._flat(tensor, read=True) for tensor in sources]
        flat_targets = [self._flat(tensor, read=False) for tensor in targets]
        self._settle(ready, sources)
        exchange(flat_sources, flat_targets)
        for tensor, flat in zip(targets, flat_targets, strict=True):
            _give_back(tensor, flat)
        self._finish(ready)

    def piecewise(
        self,
        ready: Any,
        tensors: Sequence[torch.Tensor],
        exchange: Callable[[torch.Tensor], None],
    ) -> None:
        """Call ``exchange`` with each tensor, flat, or with its parts one after the other.

        For collectives that treat each element alike and work in place: device tensors go
        through in chunks that overlap.
        """
        self._begin(ready, tensors)
        for tensor in tensors:
            if not tensor.is_cuda or self._cuda_aware:
                flat = self._flat(tensor, read=True)
                self._settle(ready, [tensor])
                exchange(flat)
                _give_back(tensor, flat)
                continue
            lanes = self._lanes_of(tensor.device)
            with torch.cuda.stream(lanes.down):
                flat = _contiguous(tensor)
            parts = flat.split(CHUNK // flat.element_size())
            pipeline(parts, lanes.buffers(flat.dtype), lanes, exchange)
            _give_back(tensor, flat)
        self._finish(ready)

    def _begin(self, ready: Any, tensors: Sequence[torch.Tensor]) -> None:
        if ready is not None:
            on_device = [tensor for tensor in tensors if tensor.is_cuda]
            self._lanes_of(on_device[0].device).begin(ready, on_device)

    def _settle(self, ready: Any, sources: Sequence[torch.Tensor]) -> None:
        """MPI reads memory when it is called, and knows of no streams."""
        if ready is not None and sources:
            torch.cuda.current_stream().synchronize()
            if self._cuda_aware:
                ready.synchronize()

    def _finish(self, ready: Any) -> None:
        if ready is not None:
            torch.cuda.current_stream().synchronize()  # host memory is about to be given up

    def _flat(self, tensor: torch.Tensor, *, read: bool) -> torch.Tensor:
        if not tensor.is_cuda or self._cuda_aware:
            return _contiguous(tensor)
        host = torch.empty(tensor.numel(), dtype=tensor.dtype, pin_memory=True)
        if read:
            host.copy_(tensor.reshape(-1), non_blocking=True)
        return host

    def _lanes_of(self, device: torch.device) -> CudaLanes:
        if device not in self._lanes:
            self._lanes[device] = CudaLanes(device)
        return self._lanes[device]


def _contiguous(tensor: torch.Tensor) -> torch.Tensor:
    # Not reshape(-1): of a column it is a view, of which MPI would see the address and no stride.
    return tensor.detach().contiguous().view(-1)


def _give_back(tensor: torch.Tensor, flat: torch.Tensor) -> None:
    if flat.data_ptr() != tensor.data_ptr():
        tensor.detach().copy_(flat.view(tensor.shape))
