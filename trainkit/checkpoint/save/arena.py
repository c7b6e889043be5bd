"""Memory that a training process fills, and that the process which writes to storage reads."""

import mmap
import os
from collections.abc import Callable
from typing import Any

__all__ = ["Arena"]

_PAGE = 4096


class Arena:
    """Shared memory without a name, all of its pages there before the first save needs them.

    Not in /dev/shm, of which a pod has 64 MiB by default; only the memory limit bounds it.
    """

    def __init__(self) -> None:
        """Make one of no size."""
        self.descriptor = os.memfd_create("trainkit-checkpoint", os.MFD_CLOEXEC)
        self.size = 0
        self.places: tuple[list[Any], list[Any]] | None = None
        """A framework's views of it, and what they are views of; forgotten when it grows."""
        self.unpin: Callable[[], None] | None = None
        """Undoes what lets a GPU write to it directly; None where none does."""
        self._map: mmap.mmap | None = None

    def reserve(self, size: int) -> None:
        """Make sure of ``size`` bytes; views of it must have been given up.

        The memory itself is fetched by who maps it first: better not the training process.

        Raises:
            OSError: more than there can be.
        """
        if size > self.size:
            self._unmap()
            # A state grows a little from save to save, by what its JSON says.
            self.size = -(-(size + size // 16) // _PAGE) * _PAGE
            os.ftruncate(self.descriptor, self.size)

    @property
    def memory(self) -> mmap.mmap:
        """All of it.

        Raises:
            OSError: there is not that much memory.
        """
        if self._map is None:
            self._map = mapped(self.descriptor, self.size)
        return self._map

    def view(self, offset: int, size: int) -> memoryview:
        """Bytes of it; to be released before it grows or closes.

        Raises:
            OSError: there is not that much memory.
        """
        with memoryview(self.memory) as whole:
            return whole[offset : offset + size]

    def close(self) -> None:
        """Give the memory back; any number of times."""
        self._unmap()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        self.size = 0

    def _unmap(self) -> None:
        self.places = None
        if self.unpin is not None:
            self.unpin()
            self.unpin = None
        if self._map is not None:
            self._map.close()
            self._map = None


def mapped(descriptor: int, size: int) -> mmap.mmap:
    """Map shared memory with all of its pages, so that no access has to wait for one.

    Raises:
        OSError: there is not that much memory.
    """
    return mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
