"""Messages from one rank to another: under way while collectives run."""

from typing import Any

import torch

from trainkit.strategies.torch.mpi.base import Queued, Tensors, on_device
from trainkit.strategies.torch.mpi.checks import devices
from trainkit.strategies.torch.mpi.thread import Job
from trainkit.strategies.torch.mpi.work import MpiWork

__all__ = ["Messages"]


class Messages(Queued):
    """``send`` and ``recv`` of a process group."""

    @on_device
    def send(self, tensors: Tensors, rank: int, tag: int = 0) -> Any:
        """Send the one tensor of ``tensors``."""
        (tensor,) = tensors
        flat = self._for_message(tensor)
        told = f"send of {flat.numel():,} {flat.dtype} to {rank}"

        def begin() -> Any:
            return self._wire.isend(flat, rank, tag)

        return self._queue(Job(told, begin, True, lambda: [tensor]))

    @on_device
    def recv(self, tensors: Tensors, rank: int, tag: int = 0) -> Any:
        """Receive into the one tensor of ``tensors``."""
        return self._receive(tensors, rank, tag)

    def recv_anysource(self, tensors: Tensors, tag: int = 0) -> Any:
        """Receive from whoever sends first; the ``Work`` knows who it was."""
        return self._receive(tensors, None, tag)

    def _receive(self, tensors: Tensors, rank: int | None, tag: int) -> MpiWork:
        (tensor,) = tensors
        host = tensor.is_cuda and not self._options.cuda_aware
        flat = (
            torch.empty(tensor.numel(), dtype=tensor.dtype)
            if host or not tensor.is_contiguous()
            else tensor.detach().view(-1)
        )
        request: Any = None

        def begin() -> Any:
            nonlocal request
            request = _Request(self._wire.irecv(flat, rank, tag))
            return request

        def finish() -> Any:
            if flat.data_ptr() != tensor.data_ptr():
                tensor.detach().copy_(flat.view(tensor.shape))
                if tensor.is_cuda:
                    torch.cuda.synchronize(tensor.device)
            return [tensor] if rank is not None else request.source

        told = f"recv of {flat.numel():,} {flat.dtype} from {'anybody' if rank is None else rank}"
        return self._queue(Job(told, begin, True, finish, devices(tensors)))

    def _for_message(self, tensor: torch.Tensor) -> torch.Tensor:
        plain = tensor.detach()
        if plain.is_cuda and not self._options.cuda_aware:
            return plain.reshape(-1).cpu()
        if plain.is_cuda:
            torch.cuda.current_stream(plain.device).synchronize()
        return plain.contiguous().view(-1)


class _Request:
    """A request of MPI's that remembers who sent."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self.source = -1

    def Test(self) -> bool:
        """As mpi4py has it."""
        from mpi4py import MPI

        status = MPI.Status()
        done = bool(self._request.Test(status))
        if done:
            self.source = status.Get_source()
        return done
