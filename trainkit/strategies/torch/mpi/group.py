"""A process group of torch's over MPI: what DDP, FSDP2 and distributed checkpoints call.

Each call is queued for the group's communication thread and returns at once, with a ``Work`` that
C++ can wait for. Names are those that torch's trampoline looks for, of this release and of those
before it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _create_work_from_future
from torch.futures import Future

from trainkit.errors import PeerLostError, StrategyError
from trainkit.strategies.torch.mpi.attendance import Attendance
from trainkit.strategies.torch.mpi.lending import Lending
from trainkit.strategies.torch.mpi.reducing import Reducing
from trainkit.strategies.torch.mpi.thread import CommunicationThread, Job
from trainkit.strategies.torch.mpi.wire import Wire, op_name

__all__ = ["BACKEND", "MpiGroup", "MpiOptions"]

BACKEND = "mpi4py"
"""The backend's name for torch, where ``mpi`` is what torch itself may be built with."""

Tensors = Sequence[torch.Tensor]
Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class MpiOptions:
    """How a group communicates."""

    timeout: float = 600.0
    """Seconds that a rank may be late."""
    shared_memory: bool = True
    """Ranks of a host reduce through shared memory."""
    ranks_per_host: int | None = None
    """Take so many ranks in a row for those of one host; unset: MPI knows."""
    cuda_aware: bool = False
    """MPI reads device memory."""


def _on_device(method: Method) -> Method:
    """Leave a call on CUDA tensors to NCCL, where the group has it."""

    @wraps(method)
    def call(self: "MpiGroup", *args: Any, **kwargs: Any) -> Any:
        if self.nccl is not None and _is_cuda(args[0]):
            return getattr(self.nccl, method.__name__)(*args, **kwargs)
        return method(self, *args, **kwargs)

    return call  # type: ignore[return-value]


class MpiGroup(dist.ProcessGroup):
    """Collectives of the ranks of one communicator of MPI's."""

    def __init__(
        self,
        comm: Any,
        ranks: Sequence[int],
        store: dist.Store,
        options: MpiOptions,
        *,
        name: str = "world",
        nccl: Any = None,
    ) -> None:
        """Wrap ``comm``.

        Args:
            comm: an intracommunicator of mpi4py's that is this group's alone.
            ranks: of the group, as the job counts them.
            store: of the group, for the names of ranks that are missing.
            options: see there.
            name: for threads and messages.
            nccl: a backend of torch's that takes CUDA tensors.
        """
        self._rank, self._size = comm.Get_rank(), comm.Get_size()
        super().__init__(self._rank, self._size)
        self.nccl = nccl
        self._options = options
        self._wire = Wire(comm)
        self._reducing = Reducing(self._wire, ranks, options)
        self._lending = Lending(cuda_aware=options.cuda_aware)
        attendance = Attendance(store, self._rank, ranks)
        # MPI's own waits; within a host each wait has its deadline, and says more.
        self._thread = CommunicationThread(name, options.timeout + 5.0, attendance)
        self._coalescing: list[Future[Any]] | None = None

    # -- what torch asks a group

    def getBackendName(self) -> str:
        """See torch."""
        return BACKEND

    def getRank(self) -> int:
        """See torch."""
        return self._rank

    def getSize(self) -> int:
        """See torch."""
        return self._size

    def set_timeout(self, timeout: timedelta) -> None:
        """See torch; a group's deadline is set when it is made."""
        del timeout

    def _get_backend(self, device: torch.device) -> Any:
        """See torch: what takes tensors of ``device``."""
        return self.nccl if self.nccl is not None and device.type == "cuda" else self

    def abort(self) -> None:
        """Let all that is under way here fail, for the other ranks to notice."""
        self._thread.fail(PeerLostError("aborted here (connection closed by peer)"))
        self._reducing.close()

    def shutdown(self) -> None:
        """After all calls: end the thread; collective where nothing has failed."""
        ended = self._thread.close()
        self._reducing.close()
        if ended and self._thread.failure is None and self._wire.comm:
            self._wire.comm.Free()
        if self.nccl is not None:
            self.nccl.shutdown()

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
            return work.get_future().then(lambda done: done.value()[0])
        ready = Lending.mark([flat])
        run = self._reducing.all_reduce

        def job() -> torch.Tensor:
            self._lending.piecewise(ready, [flat], lambda part: run(part, "avg", keep=keep))
            return flat

        return self._submit(_what("all_reduce", [flat], "avg"), job, [flat])

    # -- collectives

    @_on_device
    def allreduce(self, tensors: Tensors, opts: Any = None) -> Any:
        """Each of ``tensors`` becomes its reduction over all ranks."""
        op = _op(opts, tensors)
        run = self._reducing.all_reduce
        return self._piecewise("all_reduce", tensors, lambda flat: run(flat, op), op)

    @_on_device
    def allreduce_coalesced(self, tensors: Tensors, opts: Any = None) -> Any:
        """As ``allreduce``, of all in one go."""
        op = _op(opts, tensors)

        def run(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
            packed = torch.cat(sources)
            self._reducing.all_reduce(packed, op)
            for target, part in zip(
                targets, packed.split([source.numel() for source in sources]), strict=True
            ):
                target.copy_(part)

        if len({tensor.dtype for tensor in tensors}) > 1:
            return self.allreduce(tensors, opts)
        return self._whole("all_reduce", tensors, tensors, run, op)

    @_on_device
    def broadcast(self, tensors: Tensors, opts: Any) -> Any:
        """Each of ``tensors`` becomes the root's."""
        root = opts.rootRank
        return self._piecewise(
            "broadcast", tensors, lambda flat: self._wire.broadcast(flat, root), f"from {root}"
        )

    @_on_device
    def reduce(self, tensors: Tensors, opts: Any) -> Any:
        """Each of ``tensors`` becomes its reduction, on the root alone."""
        op, root = _op(opts, tensors), opts.rootRank
        return self._piecewise(
            "reduce", tensors, lambda flat: self._wire.reduce(flat, op, root), f"{op} to {root}"
        )

    @_on_device
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
        _same_lengths("all_gather", inputs, outputs)
        return self._whole("all_gather", inputs, flat_outputs, run)

    def allgather_coalesced(
        self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any = None
    ) -> Any:
        """``outputs[r][i]`` becomes ``inputs[i]`` of rank *r*."""
        turned = [[group[index] for group in outputs] for index in range(len(inputs))]
        return self.allgather(turned, inputs, opts)

    @_on_device
    def all_gather_single(
        self, output: torch.Tensor, source: torch.Tensor, opts: Any = None
    ) -> Any:
        """``output`` becomes the ``source`` of all ranks, one behind the other."""
        return self._gather_into("all_gather", [output], [source])

    def all_gather_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, opts: Any = None
    ) -> Any:
        """As ``all_gather_single``, for several."""
        if self.nccl is not None and _is_cuda(outputs):
            return self.nccl.all_gather_single_coalesced(outputs, inputs, opts)
        return self._gather_into("all_gather", outputs, inputs)

    def _gather_into(self, name: str, outputs: Tensors, inputs: Tensors) -> Any:
        def run(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
            for source, target in zip(sources, targets, strict=True):
                self._wire.all_gather(target, source)

        for output, source in zip(outputs, inputs, strict=True):
            _require(name, output.numel(), self._size * source.numel(), output, source)
        return self._whole(name, inputs, outputs, run)

    @_on_device
    def reduce_scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any = None) -> Any:
        """``outputs[i]`` becomes the reduction of ``inputs[i][rank]`` over all ranks."""
        op = _op(opts, outputs)
        flat_inputs = [tensor for group in inputs for tensor in group]
        _same_lengths("reduce_scatter", outputs, inputs)

        def run(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
            for index, target in enumerate(targets):
                mine = sources[index * self._size : (index + 1) * self._size]
                self._wire.reduce_scatter(target, torch.cat(mine), op)

        return self._whole("reduce_scatter", flat_inputs, outputs, run, op)

    @_on_device
    def reduce_scatter_single(
        self, output: torch.Tensor, source: torch.Tensor, opts: Any = None
    ) -> Any:
        """``output`` becomes this rank's part of the reduction of ``source``."""
        return self._scatter_from([output], [source], opts)

    def reduce_scatter_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, opts: Any = None
    ) -> Any:
        """As ``reduce_scatter_single``, for several."""
        if self.nccl is not None and _is_cuda(outputs):
            return self.nccl.reduce_scatter_single_coalesced(outputs, inputs, opts)
        return self._scatter_from(outputs, inputs, opts)

    def _scatter_from(self, outputs: Tensors, inputs: Tensors, opts: Any) -> Any:
        op = _op(opts, outputs)

        def run(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
            for source, target in zip(sources, targets, strict=True):
                self._wire.reduce_scatter(target, source, op)

        for output, source in zip(outputs, inputs, strict=True):
            _require("reduce_scatter", source.numel(), self._size * output.numel(), output, source)
        return self._whole("reduce_scatter", inputs, outputs, run, op)

    @_on_device
    def gather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any) -> Any:
        """On the root ``outputs[0][r]`` becomes ``inputs[0]`` of rank *r*."""
        root = opts.rootRank
        (source,) = inputs
        targets = list(outputs[0]) if outputs and self._rank == root else []

        def run(sources: list[torch.Tensor], flat: list[torch.Tensor]) -> None:
            numel = self._size * sources[0].numel()
            gathered = sources[0].new_empty(numel) if self._rank == root else None
            self._wire.gather(gathered, sources[0], root)
            if gathered is not None:
                for target, part in zip(flat, gathered.view(self._size, -1), strict=True):
                    target.copy_(part)

        return self._whole("gather", [source], targets, run, f"to {root}")

    @_on_device
    def scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any) -> Any:
        """``outputs[0]`` becomes the root's ``inputs[0][rank]``."""
        root = opts.rootRank
        sources = list(inputs[0]) if inputs and self._rank == root else []

        def run(flat: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
            self._wire.scatter(targets[0], torch.cat(flat) if flat else None, root)

        return self._whole("scatter", sources, outputs, run, f"from {root}")

    @_on_device
    def alltoall(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> Any:
        """``outputs[r]`` becomes rank *r*'s ``inputs[rank]``."""
        del opts

        def run(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
            counts = [target.numel() for target in targets]
            received = targets[0].new_empty(sum(counts))
            sent = [source.numel() for source in sources]
            self._wire.all_to_all(received, torch.cat(sources), counts, sent)
            for target, part in zip(targets, received.split(counts), strict=True):
                target.copy_(part)

        return self._whole("all_to_all", inputs, outputs, run)

    @_on_device
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
        counts = _counts(source, input_splits, self._size)
        out_counts = _counts(output, output_splits, self._size)

        def run(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
            self._wire.all_to_all(targets[0], sources[0], out_counts, counts)

        return self._whole("all_to_all", [source], [output], run)

    def barrier(self, opts: Any = None) -> Any:
        """Wait for all ranks, and for what each has begun on its device."""
        del opts
        if torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
        return self._work(self._submit("barrier", self._wire.barrier))

    # -- messages

    @_on_device
    def send(self, tensors: Tensors, rank: int, tag: int = 0) -> Any:
        """Send the one tensor of ``tensors``."""
        (tensor,) = tensors
        flat = self._for_message(tensor)
        what = f"send of {flat.numel():,} {flat.dtype} to {rank}"
        begin: Callable[[], Any] = lambda: self._wire.isend(flat, rank, tag)  # noqa: E731
        return self._work(self._thread.submit(Job(what, begin, True, lambda: [tensor])))

    @_on_device
    def recv(self, tensors: Tensors, rank: int, tag: int = 0) -> Any:
        """Receive into the one tensor of ``tensors``."""
        return self._work(self._receive(tensors, rank, tag))

    def recv_anysource(self, tensors: Tensors, tag: int = 0) -> Any:
        """Receive from whoever sends first; the ``Work`` knows who it was."""
        return _Received(self._receive(tensors, None, tag))

    def _receive(self, tensors: Tensors, rank: int | None, tag: int) -> Future[Any]:
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

        what = f"recv of {flat.numel():,} {flat.dtype} from {'anybody' if rank is None else rank}"
        return self._thread.submit(Job(what, begin, True, finish, _devices(tensors)))

    def _for_message(self, tensor: torch.Tensor) -> torch.Tensor:
        plain = tensor.detach()
        if plain.is_cuda and not self._options.cuda_aware:
            return plain.reshape(-1).cpu()
        if plain.is_cuda:
            torch.cuda.current_stream(plain.device).synchronize()
        return plain.reshape(-1)

    # -- several calls as one

    def _start_coalescing(self, device: Any = None) -> None:
        """See torch."""
        if self.nccl is not None and device is not None and torch.device(device).type == "cuda":
            self.nccl._start_coalescing()
            return
        self._coalescing = []

    def _end_coalescing(self, device: Any = None) -> Any:
        """See torch."""
        if self.nccl is not None and device is not None and torch.device(device).type == "cuda":
            return self.nccl._end_coalescing()
        futures, self._coalescing = self._coalescing or [], None
        return _create_work_from_future(torch.futures.collect_all(futures))

    # -- to the thread

    def _piecewise(
        self, name: str, tensors: Tensors, run: Callable[[torch.Tensor], None], more: str = ""
    ) -> Any:
        ready = Lending.mark(tensors)
        held = list(tensors)

        def job() -> list[torch.Tensor]:
            self._lending.piecewise(ready, held, run)
            return held

        return self._work(self._submit(_what(name, tensors, more), job, tensors))

    def _whole(
        self,
        name: str,
        sources: Tensors,
        targets: Tensors,
        run: Callable[[list[torch.Tensor], list[torch.Tensor]], None],
        more: str = "",
    ) -> Any:
        everything = [*sources, *targets]
        ready = Lending.mark(everything)
        held = list(targets)

        def job() -> list[torch.Tensor]:
            self._lending.whole(ready, list(sources), held, run)
            return held

        return self._work(self._submit(_what(name, everything, more), job, everything))

    def _submit(self, what: str, run: Callable[[], Any], tensors: Tensors = ()) -> Future[Any]:
        return self._thread.submit(Job(what, run, devices=_devices(tensors)))

    def _work(self, future: Future[Any]) -> Any:
        if self._coalescing is not None:
            self._coalescing.append(future)
        return _create_work_from_future(future)

    # names of torch before 2.14
    _allgather_base = all_gather_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced
    alltoall_base = all_to_all_single


class _Request:
    """A request of MPI's that remembers who sent."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self.source = -1

    def Test(self) -> bool:  # noqa: N802 - as mpi4py has it
        from mpi4py import MPI

        status = MPI.Status()
        done = bool(self._request.Test(status))
        if done:
            self.source = status.Get_source()
        return done


class _Received:
    """The ``Work`` of a message from anybody."""

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def wait(self, timeout: timedelta | None = None) -> bool:
        del timeout
        self._future.wait()
        return True

    def is_completed(self) -> bool:
        return self._future.done()

    def _source_rank(self) -> int:
        return int(self._future.value())


def _op(opts: Any, tensors: Sequence[torch.Tensor]) -> str:
    op = dist.ReduceOp.SUM if opts is None else opts.reduceOp
    if any(tensor.is_sparse for tensor in tensors):
        raise StrategyError(
            "strategy='mpi' reduces dense tensors alone: an Embedding with sparse=True needs "
            "sparse=False, or strategy='ddp'"
        )
    return op_name(op, tensors[0].dtype)


def _devices(tensors: Sequence[torch.Tensor]) -> list[torch.device]:
    return sorted({tensor.device for tensor in tensors if tensor.is_cuda}, key=str)


def _is_cuda(value: Any) -> bool:
    while isinstance(value, list | tuple):
        if not value:
            return False
        value = value[0]
    return isinstance(value, torch.Tensor) and value.is_cuda


def _what(name: str, tensors: Sequence[torch.Tensor], more: str) -> str:
    count = sum(tensor.numel() for tensor in tensors)
    dtype = f" {tensors[0].dtype}" if tensors else ""
    return f"{name} of {count:,}{dtype}" + (f" ({more})" if more else "")


def _require(
    name: str, found: int, wanted: int, output: torch.Tensor, source: torch.Tensor
) -> None:
    if found != wanted or output.dtype != source.dtype:
        raise ValueError(
            f"{name}: expected the larger tensor to have {wanted:,} elements of the other's dtype, "
            f"found {found:,} ({source.dtype} -> {output.dtype})"
        )


def _same_lengths(name: str, ones: Tensors, groups: Sequence[Tensors]) -> None:
    """MPI's own collectives take equal parts; so does what torch documents for lists."""
    for one, group in zip(ones, groups, strict=True):
        odd = [tuple(tensor.shape) for tensor in group if tensor.numel() != one.numel()]
        if odd:
            raise ValueError(
                f"{name}: expected tensors of {one.numel():,} elements, found {odd[0]}. Pad them, "
                f"or use all_to_all."
            )


def _counts(tensor: torch.Tensor, splits: Sequence[int], size: int) -> list[int]:
    if not splits:
        if tensor.numel() % size:
            raise ValueError(f"all_to_all: {tuple(tensor.shape)} does not divide by {size} ranks")
        return [tensor.numel() // size] * size
    row = math.prod(tensor.shape[1:])
    return [rows * row for rows in splits]
