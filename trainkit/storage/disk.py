"""Writing new files at the speed of the disk, and durably."""

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from trainkit.storage.base import Bytes
from trainkit.storage.largepages import BUFFER_BYTES, address, buffer, copy

__all__ = ["NewFile", "flush_folder", "flush_folders", "write_files", "write_new"]

_BUFFER = 1 << 20
_SLICE = 8 << 20
"""Bytes of one request to the disk."""

_BLOCK = 4096
"""What O_DIRECT asks addresses, offsets and lengths to be a multiple of, at most."""

_DIRECT_FROM = 1 << 20
"""Bytes from which going around the page cache pays."""

_THREADS = 4

_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP)  # what FUSE and SMB mounts answer for folders
_NO_PREALLOCATION = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)


def write_new(path: Path, parts: Iterable[Bytes]) -> None:
    """Write a file that must not exist, and flush it; on an error it is taken away again."""
    descriptor = _open_new(path)
    try:
        with os.fdopen(descriptor, "wb", buffering=_BUFFER) as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def write_files(files: Sequence["NewFile"]) -> None:
    """Write files that must not exist, and flush them; on an error all are taken away again.

    Large ones go around the page cache where the file system allows it and there are large pages
    to send them from, or their bytes lie on page boundaries; several requests at a time. The
    folders have to be flushed afterwards.
    """
    opened: list[NewFile] = []
    try:
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="trainkit-write") as pool:
            for file in files:
                file.descriptor = _open_new(file.path)
                opened.append(file)
            for file in opened:
                file.prepare()
            _all([pool.submit(part) for file in opened for part in file.body()])
            _all([pool.submit(file.finish) for file in opened])
    except BaseException:
        for file in opened:
            with contextlib.suppress(OSError):
                file.path.unlink()
        raise
    finally:
        for file in opened:
            os.close(file.descriptor)


def flush_folder(folder: Path) -> None:
    """Make the names in a folder durable; a file's own fsync does not."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise
    finally:
        os.close(descriptor)


def flush_folders(folders: Iterable[Path]) -> None:
    """Flush several folders at once: a journal writes what came together in one go."""
    waiting = list(folders)
    if len(waiting) == 1:
        flush_folder(waiting[0])
        return
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="trainkit-flush") as pool:
        _all([pool.submit(flush_folder, folder) for folder in waiting])


@dataclass(slots=True)
class NewFile:
    """A file that is written in parts."""

    path: Path
    data: memoryview
    ready: Callable[[int, int], None]
    """Called with the first byte and the one after the last before these bytes are looked at."""
    descriptor: int = -1
    direct: bool = False

    def prepare(self) -> None:
        """Go around the page cache if that is possible, with room on the disk first."""
        if len(self.data) < _DIRECT_FROM:
            return
        with buffer() as large:
            if large is None and address(self.data) % _BLOCK:
                return
        flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
        except OSError:  # tmpfs and some FUSE mounts know no such thing
            return
        self.direct = True
        # Where blocks are there already, requests beside each other do not wait in line.
        try:
            _preallocate(self.descriptor, len(self.data))
        except OSError as error:
            raise self._named(error) from error

    def body(self) -> list[Callable[[], None]]:
        """The parts that may be written in any order."""
        end = len(self.data) - (len(self.data) % _BLOCK if self.direct else 0)

        def part(begin: int) -> Callable[[], None]:
            return lambda: self._write(begin, min(begin + _SLICE, end))

        return [part(begin) for begin in range(0, end, _SLICE)]

    def finish(self) -> None:
        """Write what is no whole block, and flush."""
        if self.direct:
            self._leave_direct()
            self._write(len(self.data) - len(self.data) % _BLOCK, len(self.data))
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            raise self._named(error) from error

    def _write(self, begin: int, end: int) -> None:
        self.ready(begin, end)
        direct = self.direct
        with buffer() if direct else contextlib.nullcontext() as large:
            while begin < end:
                piece = self.data[begin:end]
                if direct and large is not None:
                    piece = copy(piece[:BUFFER_BYTES], large)
                try:
                    begin += os.pwrite(self.descriptor, piece, begin)
                except OSError as error:
                    # A file system that took the flag and wants other boundaries than blocks of
                    # 4 KiB, also after a request that it has done by half. Requests beside this
                    # one may have met it first, and taken the flag away.
                    if error.errno != errno.EINVAL or not direct:
                        raise self._named(error) from error
                    direct = False
                    self._leave_direct()

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, error.strerror, str(self.path))

    def _leave_direct(self) -> None:
        flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)


def _open_new(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _preallocate(descriptor: int, size: int) -> None:
    """Ask for blocks. Not os.posix_fallocate, which writes to each block where it cannot ask."""
    libc = ctypes.CDLL(None, use_errno=True)
    offset = ctypes.c_int64
    if libc.fallocate(descriptor, 0, offset(0), offset(size)) != 0:
        number = ctypes.get_errno()
        if number not in _NO_PREALLOCATION:
            raise OSError(number, os.strerror(number))


def _all(tasks: list[Future[None]]) -> None:
    """Wait for all; raise the first error, once none is under way any more."""
    failed = [error for error in (task.exception() for task in tasks) if error is not None]
    if failed:
        raise failed[0]
