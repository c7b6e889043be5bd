"""Which memory of this rank the others of its host can map, and what of theirs is mapped here."""

import os
from dataclasses import dataclass

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from trainkit.strategies.mpi.segments import Segment

__all__ = ["Place", "SharedMemory", "bytes_of"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank's tensor lies."""

    number: int = 0
    """Of the rank's segment; 0: in no memory that others can map."""
    offset: int = 0
    """Bytes from its start."""
    size: int = 0
    """Bytes of the segment."""


@dataclass(slots=True)
class _Known:
    number: int
    size: int
    storage: StorageWeakRef
    sent: bool = False


class SharedMemory:
    """Tensors in shared memory, of this rank and of the others."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}
        self._numbers = 0
        self._given_up: list[int] = []
        self._mapped: dict[tuple[int, int], torch.Tensor] = {}

    def share(self, flat: torch.Tensor) -> bool:
        """Move the storage under ``flat`` into shared memory, where it stays.

        Whatever views it follows: the storage is exchanged beneath them.

        Returns:
            Whether it is shared now; not where /dev/shm is too small for it.
        """
        storage = flat.untyped_storage()
        known = self._known.get(storage.data_ptr())
        if known is not None and not known.storage.expired():
            return True
        try:
            if not storage.is_shared():
                storage.share_memory_()
        except RuntimeError:
            return False
        self._forget_freed()
        self._numbers += 1
        entry = _Known(self._numbers, storage.nbytes(), StorageWeakRef(storage))
        self._known[storage.data_ptr()] = entry
        return True

    def place(self, flat: torch.Tensor) -> tuple[Place, int | None]:
        """Where ``flat`` lies, and the segment's file if the others do not have it yet."""
        storage = flat.untyped_storage()
        known = self._known.get(storage.data_ptr())
        if known is None or known.storage.expired():
            return Place(), None
        place = Place(known.number, int(flat.storage_offset()) * flat.element_size(), known.size)
        if known.sent:
            return place, None
        known.sent = True
        file, _ = storage._share_fd_cpu_()  # the storage's own, not to be closed here
        return place, file

    def next_given_up(self) -> int:
        """A segment of this rank's that the others may unmap; 0 for none."""
        self._forget_freed()
        return self._given_up.pop() if self._given_up else 0

    def map(self, peer: int, place: Place, file: int | None) -> torch.Tensor:
        """The bytes of a peer's tensor and what follows them in its segment.

        Args:
            peer: whose.
            place: in which segment, from where.
            file: of the segment, the first time; closed here.
        """
        key = (peer, place.number)
        if file is not None:
            segment = Segment(file, place.size)
            self._mapped[key] = bytes_of(segment)
            segment.close()
        return self._mapped[key][place.offset :]

    def unmap(self, peer: int, number: int) -> None:
        """Forget a peer's segment."""
        self._mapped.pop((peer, number), None)

    def close(self) -> None:
        """Unmap all that is others'."""
        self._mapped.clear()

    def _forget_freed(self) -> None:
        for address, known in list(self._known.items()):
            if known.storage.expired():
                del self._known[address]
                if known.sent:
                    self._given_up.append(known.number)


def bytes_of(segment: Segment) -> torch.Tensor:
    """The memory of ``segment`` as uint8 [size]; mapped as long as the tensor lives."""
    return torch.frombuffer(segment.memory, dtype=torch.uint8)


def close_stray(file: int | None) -> None:
    """Close a file that came and is not wanted."""
    if file is not None:
        os.close(file)
