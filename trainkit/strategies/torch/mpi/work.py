"""What a queued call gives its caller to wait for."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.futures import Future

from trainkit.strategies.torch.mpi.thread import Failed, Job

__all__ = ["MpiWork", "Together"]

_Base: Any = dist.Work


class MpiWork(_Base):  # type: ignore[misc]
    """A ``Work`` of torch's that raises what has failed, in the class that it failed with.

    torch's own, made from a future, has its ``wait`` return as after success.
    """

    def __init__(self, job: Job, future: Future[Any]) -> None:
        """Wait for ``job`` through ``future``, which C++ sees too."""
        super().__init__()
        self._job = job
        self._future = future

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Return when the call is done; groups have deadlines of their own.

        Raises:
            TrainkitError: a rank is gone, or did not come in time.
        """
        del timeout
        try:
            self._future.wait()
        except RuntimeError:
            result = self._job.future.value() if self._job.future.done() else None
            if isinstance(result, Failed):
                raise result.reason from None
            raise
        return True

    def get_future(self) -> Future[Any]:
        """See torch."""
        return self._future

    def is_completed(self) -> bool:
        """Whether it is over, in whatever way."""
        return bool(self._future.done())

    def result(self) -> Any:
        """What the call has written to."""
        return self._future.value()

    def _source_rank(self) -> int:
        """Of a message from anybody: who sent it."""
        return int(self._future.value())


class Together(_Base):  # type: ignore[misc]
    """Several calls, to be waited for as one."""

    def __init__(self, works: Sequence[MpiWork]) -> None:
        """Wait for all of ``works``."""
        super().__init__()
        self._works = tuple(works)

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Return when all are done; raises as they do."""
        del timeout
        return all(work.wait() for work in self._works)

    def get_future(self) -> Future[Any]:
        """See torch."""
        return torch.futures.collect_all([work.get_future() for work in self._works])

    def is_completed(self) -> bool:
        """Whether all are over."""
        return all(work.is_completed() for work in self._works)
