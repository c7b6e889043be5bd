"""A process group of torch's over MPI: what DDP, FSDP2 and distributed checkpoints call.

Each call is queued for the group's communication thread and returns at once, with a ``Work`` that
C++ can wait for. Names are those that torch's trampoline looks for, of this release and of those
before it.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.futures import Future

from trainkit.errors import StrategyError
from trainkit.strategies.torch.mpi.base import BACKEND, Tensors, on_device
from trainkit.strategies.torch.mpi.checks import (
    counts,
    is_cuda,
    op,
    require,
    same_lengths,
    what,
)
from trainkit.strategies.torch.mpi.lending import Lending
from trainkit.strategies.torch.mpi.messages import Messages

__all__ = ["BACKEND", "MpiGroup"]


class MpiGroup(Messages):
    """Collectives of the ranks of one communicator of MPI's."""

    def average(self, flat: torch.Tensor, *, keep: bool = False) -> Future[torch.Tensor]:
        """Average ``flat`` [n] over all ranks, in place.

        Args:
            flat: contiguous.
            keep: it is reduced again and again, as DDP's buckets are: on the CPU its storage
                moves into memory that the ranks of the host share, and what views it follows.
        """
        if self.nccl is not None and flat.is_cuda:
            options = dist.AllreduceOptions()
            options.reduceOp = dist.ReduceOp.AVG
            work = self.nccl.allreduce([flat], options)
            averaged: Future[torch.Tensor] = work.get_future().then(lambda done: done.value()[0])
            return averaged
        ready = Lending.mark([flat])
        run = self._reducing.all_reduce
        keep = keep and not flat.is_cuda  # a device's parts pass through memory that is pinned

        def job() -> torch.Tensor:
            self._lending.piecewise(ready, [flat], lambda part: run(part, "avg", keep=keep))
            return flat

        return self._submit(what("all_reduce", [flat], "avg"), job, [flat]).get_future()

    @on_device
    def allreduce(self, tensors: Tensors, opts: Any = None) -> Any:
        """Each of ``tensors`` becomes its reduction over all ranks."""
        how = op(opts, tensors)
        run = self._reducing.all_reduce
        return self._piecewise("all_reduce", tensors, lambda flat: run(flat, how), how)

    @on_device
    def allreduce_coalesced(self, tensors: Tensors, opts: Any = None) -> Any:
        """As ``allreduce``, of all in one go."""
        how = op(opts, tensors)

        def run(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
            packed = torch.cat(sources)
            self._reducing.all_reduce(packed, how)
            for target, part in zip(
                targets, packed.split([source.numel() for source in sources]), strict=True
            ):
                target.copy_(part)

        if len({tensor.dtype for tensor in tensors}) > 1:
            return self.allreduce(tensors, opts)
        return self._whole("all_reduce", tensors, tensors, run, how)

    @on_device
    def broadcast(self, tensors: Tensors, opts: Any) -> Any:
        """Each of ``tensors`` becomes the root's."""
        root = opts.rootRank
        return self._piecewise(
            "broadcast", tensors, lambda flat: self._wire.broadcast(flat, root), f"from {root}"
        )

    @on_device
    def reduce(self, tensors: Tensors, opts: Any) -> Any:
        """Each of ``tensors`` becomes its reduction, on the root alone."""
        how, root = op(opts, tensors), opts.rootRank
        return self._piecewise(
            "reduce", tensors, lambda flat: self._wire.reduce(flat, how, root), f"{how} to {root}"
        )

    @on_device
    def allgather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any = None) -> Any:
        """``outputs[i][r]`` becomes ``inputs[i]`` of rank *r*."""
        del opts

        def run(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
            for index, source in enumerate(sources):
                gathered = source.new_empty(self._size * source.numel())
                self._wire.all_gather(gathered, source)
                theirs = targets[index * self._size : (index + 1) * self._size]
                for target, part in zip(theirs, gathered.view(self._size, -1), strict=True):
                    target.copy_(part)

        flat_outputs = [tensor for group in outputs for tensor in group]
        same_lengths("all_gather", inputs, outputs)
        return self._whole("all_gather", inputs, flat_outputs, run)

    def allgather_coalesced(
        self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any = None
    ) -> Any:
        """``outputs[r][i]`` becomes ``inputs[i]`` of rank *r*."""
        turned = [[group[index] for group in outputs] for index in range(len(inputs))]
        return self.allgather(turned, inputs, opts)

    @on_device
    def all_gather_single(
        self, output: torch.Tensor, source: torch.Tensor, opts: Any = None
    ) -> Any:
        """``output`` becomes the ``source`` of all ranks, one behind the other."""
        return self._gather_into("all_gather", [output], [source])

    def all_gather_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, opts: Any = None
    ) -> Any:
        """As ``all_gather_single``, for several."""
        if self.nccl is not None and is_cuda(outputs):
            return self.nccl.all_gather_single_coalesced(outputs, inputs, opts)
        return self._gather_into("all_gather", outputs, inputs)

    def _gather_into(self, name: str, outputs: Tensors, inputs: Tensors) -> Any:
        def run(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
            for source, target in zip(sources, targets, strict=True):
                self._wire.all_gather(target, source)

        for output, source in zip(outputs, inputs, strict=True):
            require(name, output.numel(), self._size * source.numel(), output, source)
        return self._whole(name, inputs, outputs, run)

    @on_device
    def reduce_scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any = None) -> Any:
        """``outputs[i]`` becomes the reduction of ``inputs[i][rank]`` over all ranks."""
        how = op(opts, outputs)
        flat_inputs = [tensor for group in inputs for tensor in group]
        same_lengths("reduce_scatter", outputs, inputs)

        def run(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
            for index, target in enumerate(targets):
                mine = sources[index * self._size : (index + 1) * self._size]
                self._wire.reduce_scatter(target, torch.cat(mine), how)

        return self._whole("reduce_scatter", flat_inputs, outputs, run, how)

    @on_device
    def reduce_scatter_single(
        self, output: torch.Tensor, source: torch.Tensor, opts: Any = None
    ) -> Any:
        """``output`` becomes this rank's part of the reduction of ``source``."""
        return self._scatter_from([output], [source], opts)

    def reduce_scatter_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, opts: Any = None
    ) -> Any:
        """As ``reduce_scatter_single``, for several."""
        if self.nccl is not None and is_cuda(outputs):
            return self.nccl.reduce_scatter_single_coalesced(outputs, inputs, opts)
        return self._scatter_from(outputs, inputs, opts)

    def _scatter_from(self, outputs: Tensors, inputs: Tensors, opts: Any) -> Any:
        how = op(opts, outputs)

        def run(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
            for source, target in zip(sources, targets, strict=True):
                self._wire.reduce_scatter(target, source, how)

        for output, source in zip(outputs, inputs, strict=True):
            require("reduce_scatter", source.numel(), self._size * output.numel(), output, source)
        return self._whole("reduce_scatter", inputs, outputs, run, how)

    @on_device
    def gather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any) -> Any:
        """On the root ``outputs[0][r]`` becomes ``inputs[0]`` of rank *r*."""
        root = opts.rootRank
        (source,) = inputs
        targets = list(outputs[0]) if outputs and self._rank == root else []
        same_lengths("gather", inputs, [targets])

        def run(sources: list[torch.Tensor], flat: list[torch.Tensor]) -> None:
            numel = self._size * sources[0].numel()
            gathered = sources[0].new_empty(numel) if self._rank == root else None
            self._wire.gather(gathered, sources[0], root)
            if gathered is not None:
                for target, part in zip(flat, gathered.view(self._size, -1), strict=True):
                    target.copy_(part)

        return self._whole("gather", [source], targets, run, f"to {root}")

    @on_device
    def scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any) -> Any:
        """``outputs[0]`` becomes the root's ``inputs[0][rank]``."""
        root = opts.rootRank
        sources = list(inputs[0]) if inputs and self._rank == root else []
        same_lengths("scatter", outputs, [sources])

        def run(flat: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
            self._wire.scatter(targets[0], torch.cat(flat) if flat else None, root)

        return self._whole("scatter", sources, outputs, run, f"from {root}")

    @on_device
    def alltoall(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> Any:
        """``outputs[r]`` becomes rank *r*'s ``inputs[rank]``."""
        del opts

        def run(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
            sizes = [target.numel() for target in targets]
            received = targets[0].new_empty(sum(sizes))
            sent = [source.numel() for source in sources]
            self._wire.all_to_all(received, torch.cat(sources), sizes, sent)
            for target, part in zip(targets, received.split(sizes), strict=True):
                target.copy_(part)

        return self._whole("all_to_all", inputs, outputs, run)

    @on_device
    def all_to_all_single(
        self,
        output: torch.Tensor,
        source: torch.Tensor,
        output_splits: Sequence[int],
        input_splits: Sequence[int],
        opts: Any = None,
    ) -> Any:
        """Rows of ``source`` to all ranks and from all; without splits, equally many."""
        del opts
        sent = counts(source, input_splits, self._size)
        received = counts(output, output_splits, self._size)

        def run(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
            self._wire.all_to_all(targets[0], sources[0], received, sent)

        return self._whole("all_to_all", [source], [output], run)

    def barrier(self, opts: Any = None) -> Any:
        """Wait for all ranks, and for what each has begun on its device."""
        del opts
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
        return self._submit("barrier", self._wire.barrier)

    def monitored_barrier(self, timeout: Any = None, wait_all_ranks: bool = False) -> None:
        """Not here, where each barrier is monitored."""
        del timeout, wait_all_ranks
        raise StrategyError(
            "strategy='mpi' has no monitored_barrier. Use torch.distributed.barrier(): it names "
            "the ranks that have not come within TRAINKIT_TIMEOUT, or the timeout of its group."
        )

    # names of torch before 2.14
    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced
    alltoall_base = all_to_all_single
