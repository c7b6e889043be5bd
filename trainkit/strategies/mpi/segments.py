"""Memory that processes of one host share: anonymous files, of which nothing is left behind."""

import mmap
import os
from typing import Self

__all__ = ["Segment"]


class Segment:
    """A file without a name, mapped into this process.

    Unlike files in /dev/shm it is not bounded by that mount, which has 64 MiB in a container by
    default; it counts against the memory limit all the same.
    """

    def __init__(self, file: int, size: int) -> None:
        """Map ``size`` bytes of the open ``file``, which is this object's from now on."""
        self.file = file
        self.size = size
        try:
            self.memory = mmap.mmap(file, size)
        except (OSError, ValueError):
            os.close(file)
            raise

    @classmethod
    def create(cls, size: int) -> Self:
        """A new segment of ``size`` bytes, all 0.

        Raises:
            OSError: the kernel has none to give.
        """
        file = os.memfd_create("trainkit-mpi")
        os.ftruncate(file, size)
        return cls(file, size)

    def close(self) -> None:
        """Let go of it; the memory goes with its last user, in whichever process."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1
