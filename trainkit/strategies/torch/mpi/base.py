"""A process group of torch's over MPI, as far as all of its calls share it."""

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import wraps
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from trainkit.errors import PeerLostError
from trainkit.strategies.torch.mpi.attendance import Attendance
from trainkit.strategies.torch.mpi.checks import devices, is_cuda, what
from trainkit.strategies.torch.mpi.lending import Lending
from trainkit.strategies.torch.mpi.options import MpiOptions
from trainkit.strategies.torch.mpi.reducing import Reducing
from trainkit.strategies.torch.mpi.thread import CommunicationThread, Job
from trainkit.strategies.torch.mpi.wire import Wire
from trainkit.strategies.torch.mpi.work import MpiWork, Together

__all__ = ["BACKEND", "Queued", "Tensors", "on_device"]

log = logging.getLogger(__name__)

BACKEND = "mpi4py"
"""The backend's name for torch, where ``mpi`` is what torch itself may be built with."""

Tensors = Sequence[torch.Tensor]
Method = TypeVar("Method", bound=Callable[..., Any])


def on_device(method: Method) -> Method:
    """Leave a call on CUDA tensors to NCCL, where the group has it."""

    @wraps(method)
    def call(self: "Queued", *args: Any, **kwargs: Any) -> Any:
        if self.nccl is not None and is_cuda(args[0]):
            return getattr(self.nccl, method.__name__)(*args, **kwargs)
        return method(self, *args, **kwargs)

    return call  # type: ignore[return-value]


_Base: Any = dist.ProcessGroup
"""Its stubs give each call two forms, of which groups written in Python are asked for one."""


class Queued(_Base):  # type: ignore[misc]
    """Calls of the ranks of one communicator of MPI's, queued for one thread."""

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
        self._rank: int = comm.Get_rank()
        self._size: int = comm.Get_size()
        super().__init__(self._rank, self._size)
        self.nccl = nccl
        self._name, self._description = name, "undefined"
        self._options = options
        self._wire = Wire(comm)
        self._lending = Lending(cuda_aware=options.cuda_aware)
        attendance = Attendance(store, self._rank, ranks)
        # MPI's own waits; within a host each wait has its deadline, and says more.
        self._thread = CommunicationThread(name, options.timeout + 5.0, attendance)
        self._reducing = Reducing(self._wire, ranks, options, self._thread.move_messages)
        self._coalescing: list[MpiWork] | None = None

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

    def getGroupName(self) -> str:
        """See torch, which has names of its own for groups of its own backends alone."""
        return self._name

    def setGroupName(self, name: str) -> None:
        """See torch."""
        self._name = name

    def getGroupDesc(self) -> str:
        """See torch."""
        return self._description

    def setGroupDesc(self, description: str) -> None:
        """See torch."""
        self._description = description

    def set_timeout(self, timeout: timedelta) -> None:
        """See torch; a group's deadline is set when it is made."""
        del timeout

    @property
    def _device_types(self) -> list[torch.device]:
        """See torch: whose tensors it takes."""
        return [torch.device("cpu"), torch.device("cuda")]

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
        if not ended:
            log.warning(
                "process group %s was destroyed with calls under way, which have not ended since: "
                "wait for the Work of each before dist.destroy_process_group()",
                self._name,
            )
        self._reducing.close()
        if ended and self._thread.failure is None and self._wire.comm:
            self._wire.comm.Free()
        if self.nccl is not None:
            self.nccl.shutdown()

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
        works, self._coalescing = self._coalescing or [], None
        return Together(works)

    # -- to the thread

    def _piecewise(
        self, name: str, tensors: Tensors, run: Callable[[torch.Tensor], None], more: str = ""
    ) -> Any:
        ready = Lending.mark(tensors)
        held = list(tensors)

        def job() -> list[torch.Tensor]:
            self._lending.piecewise(ready, held, run)
            return held

        return self._submit(what(name, tensors, more), job, tensors)

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

        return self._submit(what(name, everything, more), job, everything)

    def _submit(self, told: str, run: Callable[[], Any], tensors: Tensors = ()) -> MpiWork:
        return self._queue(Job(told, run, devices=devices(tensors)))

    def _queue(self, job: Job) -> MpiWork:
        work = MpiWork(job, self._thread.submit(job))
        if self._coalescing is not None:
            self._coalescing.append(work)
        return work
