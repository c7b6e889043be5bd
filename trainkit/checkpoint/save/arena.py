"""Memory that a training process fills, and that the process which writes to storage reads."""

import ctypes
import mmap
import os
from collections.abc import Callable
from typing import Any

__all__ = ["Arena"]

_PAGE = 4096
_MADV_POPULATE_WRITE = 23
_LIBC = ctypes.CDLL(None)


class Arena:
    """Shared memory without a name, all of its pages there before the first save needs them.

    Not in /dev/shm, of which a pod has 64 MiB by default; only the memory limit bounds it.
    """

    def __init__(self) -> None:
        """Make one of no size."""
        self.descriptor = os.memfd_create("trainkit-checkpoint", os.MFD_CLOEXEC)
        self.size = 0
        self.places: tuple[Any, list[Any]] | None = None
        """A framework's views of it, after what they are views of; forgotten when it grows."""
        self.unpin: Callable[[], None] | None = None
        """Undoes what lets a GPU write to it directly; None where none does."""
        self._map: mmap.mmap | None = None

    def reserve(self, size: int) -> None:
        """Make sure of ``size`` bytes; views of it must have been given up.

        The memory itself is fetched by who maps it first, or by ``populate``.

        Raises:
            OSError: more than there can be.
        """
        if size > self.size:
            self._unmap()
            # A state grows a little from save to save, by what its JSON says.
            self.size = -(-(size + size // 16) // _PAGE) * _PAGE
            os.ftruncate(self.descriptor, self.size)

    def populate(self) -> None:
        """Fetch all pages, on a thread beside others: a first save would have to wait for them.

        Raises:
            OSError: there is not that much memory.
        """
        if self._map is not None or self.size == 0:
            return
        self._map = mmap.mmap(self.descriptor, self.size, flags=mmap.MAP_SHARED)
        exported = (ctypes.c_char * self.size).from_buffer(self._map)
        try:
            # A call through ctypes lets Python's other threads run, which mmap's own do not. A
            # kernel before 5.14 does not know it, and copies fetch the pages then.
            _LIBC.madvise(
                ctypes.c_void_p(ctypes.addressof(exported)),
                ctypes.c_size_t(self.size),
                _MADV_POPULATE_WRITE,
            )
        finally:
            del exported

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
