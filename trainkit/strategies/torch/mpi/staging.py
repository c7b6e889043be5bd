"""Device tensors through pinned host memory, for an MPI that cannot read device memory.

Three things happen at once: chunk k + 1 comes down from the device, MPI works on chunk k, and
chunk k - 1 goes up again. What does it, ``pipeline``, knows nothing of CUDA.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

__all__ = ["CudaLanes", "Lanes", "Ticket", "pipeline"]

CHUNK = 8 << 20
"""Bytes of a chunk: long enough for the bus to reach its speed, short enough to overlap."""
BUFFERS = 3
"""One that comes down, one in MPI, one that goes up."""


class Ticket(Protocol):
    """A copy under way."""

    def wait(self) -> None:
        """Return when it is done."""


class Lanes(Protocol):
    """Copies in both directions that go on by themselves."""

    def fetch(self, part: torch.Tensor, host: torch.Tensor) -> Ticket:
        """Begin to copy ``part`` of a device tensor into ``host``."""

    def store(self, host: torch.Tensor, part: torch.Tensor) -> Ticket:
        """Begin to copy ``host`` into ``part``."""


def pipeline(
    parts: Sequence[torch.Tensor],
    buffers: Sequence[torch.Tensor],
    lanes: Lanes,
    exchange: Callable[[torch.Tensor], None],
) -> None:
    """Bring each of ``parts`` to the host, through ``exchange``, and back.

    Args:
        parts: flat device tensors of one dtype, each at most as long as a buffer.
        buffers: flat host tensors of that dtype; with three, all of it overlaps.
        lanes: what copies.
        exchange: works on a part in host memory, in place; called in order.

    Copies back may still be under way when this returns: they are ordered on the lanes.
    """
    fetched: dict[int, Ticket] = {}
    stored: dict[int, Ticket] = {}

    def host(index: int) -> torch.Tensor:
        return buffers[index % len(buffers)][: parts[index].numel()]

    def fetch(index: int) -> None:
        if index < len(parts):
            before = stored.pop(index - len(buffers), None)
            if before is not None:
                before.wait()  # its buffer is this one's
            fetched[index] = lanes.fetch(parts[index], host(index))

    ahead = len(buffers) > 1
    fetch(0)
    for index, part in enumerate(parts):
        if ahead:
            fetch(index + 1)
        fetched.pop(index).wait()
        exchange(host(index))
        stored[index] = lanes.store(host(index), part)
        if not ahead:
            fetch(index + 1)


class CudaLanes:
    """Two streams of one device, and the pinned memory between them; used by one thread."""

    def __init__(self, device: torch.device) -> None:
        """Make streams and memory on ``device``."""
        self.device = device
        self.down = torch.cuda.Stream(device)
        self.up = torch.cuda.Stream(device)
        self._pinned = [
            torch.empty(CHUNK, dtype=torch.uint8, pin_memory=True) for _ in range(BUFFERS)
        ]
        # This thread's stream from now on: futures record it, so whoever waits for one waits
        # for the copies back, and not for what the training thread has queued meanwhile.
        torch.cuda.set_device(device)
        torch.cuda.set_stream(self.up)

    def buffers(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """The pinned memory, as flat tensors of ``dtype``."""
        return [buffer.view(dtype) for buffer in self._pinned]

    def begin(self, ready: Any, tensors: Sequence[torch.Tensor]) -> None:
        """Have both lanes wait for ``ready``, an event of the stream that made ``tensors``."""
        for stream in (self.down, self.up):
            stream.wait_event(ready)
            for tensor in tensors:
                tensor.record_stream(stream)

    def fetch(self, part: torch.Tensor, host: torch.Tensor) -> Ticket:
        """See ``Lanes.fetch``."""
        return self._copy(self.down, host, part)

    def store(self, host: torch.Tensor, part: torch.Tensor) -> Ticket:
        """See ``Lanes.store``."""
        return self._copy(self.up, part, host)

    def _copy(self, stream: Any, into: torch.Tensor, source: torch.Tensor) -> Ticket:
        with torch.cuda.stream(stream):
            into.copy_(source, non_blocking=True)
            event = torch.cuda.Event()
            event.record(stream)
        return _Copied(event)


class _Copied:
    def __init__(self, event: Any) -> None:
        self._event = event

    def wait(self) -> None:
        self._event.synchronize()
