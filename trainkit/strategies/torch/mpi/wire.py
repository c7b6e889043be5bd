"""MPI's collectives on flat tensors: which bytes, which datatype, which operation.

Everything blocks. Buffers are addresses, so what is said here of host memory holds for device
memory too where MPI can read that.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from trainkit.errors import StrategyError

__all__ = ["OPS", "Wire", "combine", "op_name"]

OPS = ("sum", "avg", "product", "min", "max", "band", "bor", "bxor")

_TORCH_OPS: dict[str, Callable[..., Any]] = {
    "sum": torch.add,
    "avg": torch.add,
    "product": torch.mul,
    "min": torch.minimum,
    "max": torch.maximum,
    "band": torch.bitwise_and,
    "bor": torch.bitwise_or,
    "bxor": torch.bitwise_xor,
}
_MPI_OPS = {
    "sum": "SUM",
    "avg": "SUM",
    "product": "PROD",
    "min": "MIN",
    "max": "MAX",
    "band": "BAND",
    "bor": "BOR",
    "bxor": "BXOR",
}
_MPI_TYPES = {
    torch.float32: "FLOAT",
    torch.float64: "DOUBLE",
    torch.int8: "INT8_T",
    torch.int16: "INT16_T",
    torch.int32: "INT32_T",
    torch.int64: "INT64_T",
    torch.uint8: "UINT8_T",
    torch.bool: "UINT8_T",
}
"""What MPI adds up itself."""
_ADDED_UP_HERE = (torch.bfloat16, torch.float16, torch.complex64, torch.complex128)
_BY_SIZE = {1: "BYTE", 2: "INT16_T", 4: "INT32_T", 8: "INT64_T", 16: "C_DOUBLE_COMPLEX"}
"""Datatypes by bytes, for what is only moved; counts are ``int`` in MPI, so not all as bytes."""
_LARGEST = 1 << 28
"""Elements of one call of MPI."""
_BOOL = {"sum": "max", "product": "min", "band": "min", "bor": "max", "min": "min", "max": "max"}


def op_name(op: Any, dtype: torch.dtype) -> str:
    """The name in ``OPS`` of a ``ReduceOp`` of torch's.

    Raises:
        StrategyError: there is no such operation here, or none on ``dtype``.
    """
    names = {"avg": "AVG", "product": "PRODUCT", "sum": "SUM", "min": "MIN", "max": "MAX"}
    names |= {"band": "BAND", "bor": "BOR", "bxor": "BXOR"}
    found = next((k for k, name in names.items() if op == getattr(dist.ReduceOp, name)), None)
    if found is None:
        raise StrategyError(f"strategy='mpi' cannot reduce by {op}; it knows {', '.join(names)}")
    if dtype not in _MPI_TYPES and dtype not in _ADDED_UP_HERE:
        raise StrategyError(
            f"strategy='mpi' adds up no tensors of {dtype}: torch has no sum of them on the CPU. "
            f"Convert them, say to torch.int64 or torch.float32."
        )
    floating = dtype.is_floating_point or dtype.is_complex
    if (found == "avg" and not floating) or (found in ("band", "bor", "bxor") and floating):
        raise StrategyError(f"a reduction by {found} means nothing for {dtype}")
    if dtype == torch.bool:
        if found not in _BOOL:
            raise StrategyError(f"a reduction by {found} means nothing for {dtype}")
        return _BOOL[found]
    return found


def combine(op: str, into: torch.Tensor, other: torch.Tensor) -> None:
    """``into`` becomes ``into op other``; both of one dtype and length."""
    _TORCH_OPS[op](into, other, out=into)


class Wire:
    """Collectives over one communicator of MPI's."""

    def __init__(self, comm: Any) -> None:
        """Use ``comm``, an intracommunicator that nobody else uses."""
        from mpi4py import MPI

        self._mpi = MPI
        self.comm = comm
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()

    def all_reduce(self, flat: torch.Tensor, op: str) -> None:
        """In place, over all ranks; ``avg`` divides."""
        if flat.numel() == 0:
            return
        if flat.dtype in _MPI_TYPES:
            for part in flat.split(_LARGEST):
                self.comm.Allreduce(self._mpi.IN_PLACE, self._typed(part), self._op(op))
            if op == "avg":
                flat.div_(self.size)
        else:
            self._all_reduce_here(flat, op)

    def reduce_scatter(self, out: torch.Tensor, flat: torch.Tensor, op: str) -> None:
        """``out`` [n] becomes this rank's part of the reduction of ``flat`` [size * n]."""
        if out.numel() == 0:
            return
        if flat.dtype in _MPI_TYPES and out.numel() <= _LARGEST:
            self.comm.Reduce_scatter_block(self._typed(flat), self._typed(out), self._op(op))
        else:
            theirs = torch.empty_like(flat)
            n = out.numel()
            self.all_to_all(theirs, flat, [n] * self.size, [n] * self.size)
            self._sum_up(out, theirs, op)
            return
        if op == "avg":
            out.div_(self.size)

    def reduce(self, flat: torch.Tensor, op: str, root: int) -> None:
        """In place on ``root``; elsewhere ``flat`` stays as it was."""
        if flat.dtype in _MPI_TYPES:
            for part in flat.split(_LARGEST):
                mine = self._typed(part)
                if self.rank == root:
                    self.comm.Reduce(self._mpi.IN_PLACE, mine, self._op(op), root)
                else:
                    self.comm.Reduce(mine, None, self._op(op), root)
            if op == "avg" and self.rank == root:
                flat.div_(self.size)
        else:
            copy = flat.clone()
            self.all_reduce(copy, op)
            if self.rank == root:
                flat.copy_(copy)

    def broadcast(self, flat: torch.Tensor, root: int) -> None:
        """``flat`` of ``root`` to all."""
        for part in flat.split(_LARGEST):
            self.comm.Bcast(self._moved(part), root)

    def all_gather(self, out: torch.Tensor, flat: torch.Tensor) -> None:
        """``out`` [size * n] becomes the ``flat`` [n] of all ranks, in their order."""
        self.comm.Allgather(self._moved(flat), self._moved(out))

    def gather(self, out: torch.Tensor | None, flat: torch.Tensor, root: int) -> None:
        """As ``all_gather``, on ``root`` alone; ``out`` is None elsewhere."""
        self.comm.Gather(self._moved(flat), None if out is None else self._moved(out), root)

    def scatter(self, out: torch.Tensor, flat: torch.Tensor | None, root: int) -> None:
        """``out`` [n] becomes this rank's part of ``root``'s ``flat`` [size * n]."""
        self.comm.Scatter(None if flat is None else self._moved(flat), self._moved(out), root)

    def all_to_all(
        self,
        out: torch.Tensor,
        flat: torch.Tensor,
        out_counts: Sequence[int],
        counts: Sequence[int],
    ) -> None:
        """``counts[r]`` elements of ``flat`` to each rank *r*, ``out_counts[r]`` from each."""
        self.comm.Alltoallv(
            [self._buffer(flat), list(counts), self._moving(flat)],
            [self._buffer(out), list(out_counts), self._moving(out)],
        )

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.comm.Barrier()

    def isend(self, flat: torch.Tensor, rank: int, tag: int) -> Any:
        """Begin to send; ``flat`` must stay until the request that is returned is done."""
        return self.comm.Isend(self._moved(flat), rank, tag)

    def irecv(self, flat: torch.Tensor, rank: int | None, tag: int) -> Any:
        """Begin to receive, from anybody where ``rank`` is None."""
        source = self._mpi.ANY_SOURCE if rank is None else rank
        return self.comm.Irecv(self._moved(flat), source, tag)

    def _all_reduce_here(self, flat: torch.Tensor, op: str) -> None:
        """Each rank adds up a part, in fp32, and gives it to all: as many bytes as a ring."""
        n = -(-flat.numel() // self.size)
        padded = flat.new_zeros(n * self.size)
        padded[: flat.numel()].copy_(flat)
        theirs = torch.empty_like(padded)
        self.all_to_all(theirs, padded, [n] * self.size, [n] * self.size)
        part = flat.new_empty(n)
        self._sum_up(part, theirs, op)
        self.all_gather(padded, part)
        flat.copy_(padded[: flat.numel()])

    def _sum_up(self, out: torch.Tensor, parts: torch.Tensor, op: str) -> None:
        wide = torch.float32 if out.dtype in (torch.bfloat16, torch.float16) else out.dtype
        first, *others = parts.view(self.size, -1).unbind()
        total = first.to(wide, copy=True)
        for other in others:
            combine(op, total, other.to(wide))
        if op == "avg":  # before it is rounded: a sum of fp16 may be more than fp16 holds
            total.div_(self.size)
        out.copy_(total)

    def _typed(self, flat: torch.Tensor) -> list[Any]:
        return [self._buffer(flat), getattr(self._mpi, _MPI_TYPES[flat.dtype])]

    def _moved(self, flat: torch.Tensor) -> list[Any]:
        # Without a count: mpi4py would take one for that of each rank's block.
        return [self._buffer(flat), self._moving(flat)]

    def _buffer(self, flat: torch.Tensor) -> Any:
        if flat.is_cuda:  # MPI reads it when it is called, and knows of no streams
            torch.cuda.current_stream(flat.device).synchronize()
        return self._mpi.buffer.fromaddress(flat.data_ptr(), flat.nbytes)

    def _moving(self, flat: torch.Tensor) -> Any:
        return getattr(self._mpi, _BY_SIZE[flat.element_size()])

    def _op(self, op: str) -> Any:
        return getattr(self._mpi, _MPI_OPS[op])
