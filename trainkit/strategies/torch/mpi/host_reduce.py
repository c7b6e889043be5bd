"""All-reduce within a host through memory that its ranks share, each reducing a part.

Tensors that lie in shared memory (DDP's buckets, see ``hook.py``) are reduced where they are:
every rank reads its part of all of them, and writes the result into all. Others go through
staging memory a chunk at a time, so that what is staged stays in the cache. Across hosts, the
ranks that own the same part go on through MPI, as many at a time as the smallest host has ranks.
"""

import struct
from collections.abc import Callable, Iterator, Sequence

import torch

from trainkit.errors import StrategyError
from trainkit.strategies.mpi.channel import HostChannel
from trainkit.strategies.mpi.segments import Segment
from trainkit.strategies.torch.mpi.shared import Place, SharedMemory, bytes_of, close_stray
from trainkit.strategies.torch.mpi.wire import OPS, combine

__all__ = ["HostReducer"]

_CHUNK = 2 << 20
"""Bytes of a rank's tensor that are staged at once."""
_SMALL = 32 << 10
"""Bytes up to which every rank reduces all of it: one meeting in place of two."""
_TILE = 512 << 10
"""Bytes that are reduced at once: what is read again is in the core's own cache, and Python takes
little of the time."""
_ALIGN = 64
"""Elements to which parts are rounded: no two ranks write to one cache line."""

_ARRIVAL = struct.Struct("=QQIIQQBB")
"""Number of the call, bytes of the tensor, segment, segment given up, offset, bytes of the
segment, operation, dtype."""
_MEETING = struct.Struct("=Q")

_DTYPES = (
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool),
)
_HALF = (torch.bfloat16, torch.float16)


class HostReducer:
    """All-reduce among the ranks of a host; used by one thread."""

    def __init__(
        self,
        channel: HostChannel,
        *,
        world_size: int,
        owners: int,
        cross: Callable[[torch.Tensor, str], None] | None,
    ) -> None:
        """Exchange staging memory with the other ranks of the host.

        Args:
            channel: to them.
            world_size: of the group, over all hosts: what ``avg`` divides by.
            owners: how many ranks of each host own a part; the size of the smallest host.
            cross: reduces a flat tensor over the hosts, among the ranks that own the same part;
                None where there is one host.
        """
        self._channel = channel
        self._world_size = world_size
        self._owners = owners
        self._cross = cross
        self._calls = 0
        self._slot = 0
        self.memory = SharedMemory()
        # Parts are rounded up to _ALIGN elements of at most 8 bytes.
        self._place = _CHUNK // owners // 4096 * 4096 + 4096
        self._slot_size = owners * self._place
        self._own = Segment.create(2 * self._slot_size)
        self._stages: dict[int, torch.Tensor] = {channel.index: bytes_of(self._own)}
        channel.send(b"stage", self._own.file)
        for peer, (_, file) in channel.receive("the exchange of memory").items():
            if file is None:
                raise StrategyError(f"rank {peer} of this host sent no memory to share")
            segment = Segment(file, 2 * self._slot_size)
            self._stages[peer] = bytes_of(segment)
            segment.close()

    def takes(self, flat: torch.Tensor) -> bool:
        """Whether tensors like ``flat`` are reduced here; the same on all ranks."""
        small = self._cross is not None and flat.nbytes <= _SMALL
        return flat.device.type == "cpu" and flat.dtype in _DTYPES and not small

    def all_reduce(self, flat: torch.Tensor, op: str) -> None:
        """Reduce ``flat`` [n], contiguous, in place; ``op`` is one of ``wire.OPS``.

        Raises:
            PeerLostError: a rank of this host is gone.
            DeadlineError: a rank did not come in time.
            StrategyError: the ranks called with different tensors or operations.
        """
        if flat.numel() == 0:
            return
        self._calls += 1
        what = f"all_reduce of {flat.numel():,} {flat.dtype} ({op})"
        small = flat.nbytes <= _SMALL
        place, file = (Place(), None) if small else self.memory.place(flat)
        if not place.number:
            self._copy_in(flat)
        self._announce(flat, op, place, file)
        theirs = self._arrivals(flat, op, what)
        shared = [its.number > 0 for its in (place, *theirs.values())]
        if all(shared):
            self._in_place(flat, op, theirs)
            self._meet(what)
            return
        if any(shared):
            # Memory on some ranks alone: those who have it have staged nothing yet.
            if place.number:
                self._copy_in(flat)
            self._meet(what)
        if small:
            self._small(flat, op)
        else:
            self._staged(flat, op, what)

    def close(self) -> None:
        """Hang up, and let go of all memory."""
        self._channel.close()
        self.memory.close()
        self._stages.clear()
        self._own.close()

    # -- who has come, with what

    def _announce(self, flat: torch.Tensor, op: str, place: Place, file: int | None) -> None:
        arrival = _ARRIVAL.pack(
            *(self._calls, flat.nbytes, place.number, self.memory.next_given_up()),
            *(place.offset, place.size, OPS.index(op), _DTYPES.index(flat.dtype)),
        )
        self._channel.send(arrival, file)

    def _arrivals(self, flat: torch.Tensor, op: str, what: str) -> dict[int, Place]:
        """Where each peer's tensor lies."""
        found: dict[int, Place] = {}
        for peer, (payload, file) in self._channel.receive(what).items():
            if len(payload) != _ARRIVAL.size:
                close_stray(file)
                raise self._mismatch(peer, what, "a message of another kind")
            call, nbytes, number, given_up, offset, size, its_op, dtype = _ARRIVAL.unpack(payload)
            if (call, nbytes, its_op, dtype) != (
                *(self._calls, flat.nbytes, OPS.index(op), _DTYPES.index(flat.dtype)),
            ):
                close_stray(file)
                its = f"call {call}: {nbytes:,} bytes of {_DTYPES[dtype]} ({OPS[its_op]})"
                raise self._mismatch(peer, what, its)
            if given_up:
                self.memory.unmap(peer, given_up)
            found[peer] = Place(number, offset, size)
            if number:
                self.memory.map(peer, found[peer], file)
            else:
                close_stray(file)
        return found

    def _mismatch(self, peer: int, what: str, its: str) -> StrategyError:
        return StrategyError(
            f"call {self._calls} is {what} on this rank, and on {self._channel.names[peer]} {its}. "
            f"All ranks must make the same collective calls, in one order, on tensors of one shape."
        )

    def _meet(self, what: str) -> None:
        self._channel.send(_MEETING.pack(self._calls))
        for peer, (payload, file) in self._channel.receive(what).items():
            if payload != _MEETING.pack(self._calls):
                close_stray(file)
                raise self._mismatch(peer, what, "something else")

    # -- reduce

    def _in_place(self, flat: torch.Tensor, op: str, theirs: dict[int, Place]) -> None:
        mine = self._part_of(flat.numel())
        others = [
            self.memory.map(peer, place, None)[: flat.nbytes].view(flat.dtype)[mine]
            for peer, place in theirs.items()
        ]
        self._reduce(flat[mine], others, op, others)

    def _small(self, flat: torch.Tensor, op: str) -> None:
        """All ranks, in the same order of ranks, so that all get the same bits."""
        stages = [self._stage(index, self._slot, 0, flat) for index in range(self._channel.size)]
        total = stages[0].float() if flat.dtype in _HALF else stages[0].clone()
        for stage in stages[1:]:
            combine(op, total, stage.to(total.dtype))
        if op == "avg":
            total.mul_(1.0 / self._world_size)
        flat.copy_(total)
        self._slot = 1 - self._slot

    def _staged(self, flat: torch.Tensor, op: str, what: str) -> None:
        """Chunk k is reduced, and k + 1 staged, before one meeting; then k is copied out.

        Two slots suffice, since who comes to a meeting has read what was in the slot before; and
        each owner's place in a slot is fixed, or k + 2 might be staged over the result of k.
        """
        chunks = flat.split(_CHUNK // flat.element_size())
        own = self._channel.index
        for index, chunk in enumerate(chunks):
            slot = self._slot
            parts = list(self._parts(chunk.numel()))
            mine = chunk[parts[own]]
            others = [self._stage(peer, slot, own, mine) for peer in self._channel.peers]
            self._reduce(mine, others, op, [self._stage(own, slot, own, mine)])
            self._slot = 1 - slot
            if index + 1 < len(chunks):
                self._copy_in(chunks[index + 1])
            self._meet(what)
            for owner in self._channel.peers:
                part = chunk[parts[owner]]
                part.copy_(self._stage(owner, slot, owner, part))

    def _reduce(
        self,
        mine: torch.Tensor,
        others: Sequence[torch.Tensor],
        op: str,
        copies: Sequence[torch.Tensor],
    ) -> None:
        """``mine`` becomes the reduction of itself and ``others``, and ``copies`` its copies."""
        half = mine.dtype in _HALF
        tile = _TILE // mine.element_size()
        crossing = self._cross is not None
        scale = 1.0 / self._world_size
        for start in range(0, mine.numel(), tile):
            part = mine[start : start + tile]
            total = part.float() if half else part
            for other in others:
                piece = other[start : start + tile]
                combine(op, total, piece.float() if half else piece)
            if op == "avg" and (half or not crossing):
                total.mul_(scale)  # in fp32: a sum of fp16 may be more than fp16 holds
            if half:
                part.copy_(total)
            if not crossing:
                for copy in copies:
                    copy[start : start + tile].copy_(part)
        if self._cross is not None and mine.numel():
            self._cross(mine, "sum" if op == "avg" else op)
            if op == "avg" and not half:
                mine.mul_(scale)
            for copy in copies:
                copy.copy_(mine)

    # -- parts and places

    def _parts(self, numel: int) -> Iterator[slice]:
        """What each rank of the host owns of ``numel`` elements: nothing, from ``owners`` on."""
        each = -(-numel // self._owners)
        each = -(-each // _ALIGN) * _ALIGN
        for index in range(self._channel.size):
            start = min(numel, index * each) if index < self._owners else numel
            yield slice(start, min(numel, start + each))

    def _part_of(self, numel: int) -> slice:
        return list(self._parts(numel))[self._channel.index]

    def _copy_in(self, flat: torch.Tensor) -> None:
        """Stage a small tensor, or the first chunk of a large one, without what is this rank's."""
        own = self._channel.index
        if flat.nbytes <= _SMALL:
            self._stage(own, self._slot, 0, flat).copy_(flat)
            return
        chunk = flat[: _CHUNK // flat.element_size()]
        for owner, part in enumerate(self._parts(chunk.numel())):
            if owner != own:
                self._stage(own, self._slot, owner, chunk[part]).copy_(chunk[part])

    def _stage(self, index: int, slot: int, owner: int, like: torch.Tensor) -> torch.Tensor:
        """In the staging memory of rank ``index``: the place of ``owner``'s part of a chunk."""
        start = slot * self._slot_size + owner * self._place
        return self._stages[index][start : start + like.nbytes].view(like.dtype)
