"""A local folder, for frameworks that write and read files by their names alone."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

from trainkit.checkpoint.adapters.base import RawFile

__all__ = ["Scratch", "opened"]

_PREFIX = "trainkit-scratch-"
_LOCK = ".lock"


class Scratch:
    """A folder below ``TMPDIR``, which goes with this object, at the latest with the process.

    What a kill leaves behind is removed by the next process that makes one: a lock, held for
    as long as its process lives, tells who is alive.
    """

    def __init__(self) -> None:
        """Make an empty folder.

        Raises:
            OSError: none can be made there; the message names the place.
        """
        above = Path(tempfile.gettempdir())
        _sweep(above)
        descriptor, lock = _new_lock(above)
        # The lock is there before the folder, so that no folder is ever without one.
        self.path = lock.with_name(lock.name.removesuffix(_LOCK))
        self._finalizer = weakref.finalize(self, _end, self.path, descriptor, os.getpid())
        self.path.mkdir(mode=0o700)

    def remove(self) -> None:
        """Remove the folder with all that is in it; any number of times."""
        self._finalizer()


def opened(path: Path) -> RawFile:
    """A file, which may be removed meanwhile: it stays open until nobody refers to it any more."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    file = _Open(descriptor, path.name)
    return RawFile(os.fstat(descriptor).st_size, file.read)


class _Open:
    def __init__(self, descriptor: int, name: str) -> None:
        self._descriptor = descriptor
        self._name = name
        weakref.finalize(self, os.close, descriptor)

    def read(self, begin: int, end: int) -> bytearray:
        data = bytearray(end - begin)
        view = memoryview(data)
        done = 0
        while done < len(data):
            count = os.preadv(self._descriptor, [view[done:]], begin + done)
            if count == 0:
                raise OSError(f"{self._name} ends at byte {begin + done}, before {end}")
            done += count
        return data


def _new_lock(above: Path) -> tuple[int, Path]:
    while True:
        descriptor, name = tempfile.mkstemp(prefix=_PREFIX, suffix=_LOCK, dir=above)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor, Path(name)
        os.close(descriptor)  # somebody swept it away before it was locked


def _end(folder: Path, descriptor: int, owner: int) -> None:
    if os.getpid() == owner:  # a forked child has a copy of this, and no part in it
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_name(folder.name + _LOCK).unlink(missing_ok=True)
    os.close(descriptor)


def _sweep(above: Path) -> None:
    """Remove folders of processes that are dead; what is somebody else's is left alone."""
    for lock in above.glob(f"{_PREFIX}*{_LOCK}"):
        with contextlib.suppress(OSError), _locked(lock):
            shutil.rmtree(lock.with_name(lock.name.removesuffix(_LOCK)), ignore_errors=True)
            lock.unlink()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Raises ``OSError`` where somebody has the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
