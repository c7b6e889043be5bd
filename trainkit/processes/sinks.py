"""Writing to a descriptor whose reader may be slow, blocked or gone."""

import errno
import os
import select
import stat
from collections import deque
from itertools import islice

__all__ = ["Sink"]

_FULL = 256 * 1024
"""Bytes that wait for a slow reader before processes are no longer read from."""

_SURE = 4096
"""Bytes that a descriptor which is ready takes without blocking (PIPE_BUF of Linux)."""

_MOST_BUFFERS = 64
"""How many lines or blocks one call writes; the kernel takes up to 1024."""

_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Sink:
    """Writes to a descriptor as it takes bytes, and never waits for it.

    The descriptor itself stays as it is: O_NONBLOCK would hold for the shell and for every
    process that shares it. So a pipe or terminal is opened anew; where that is refused (a
    socket, a pipe of another user), small writes follow a look at whether they would block.
    """

    def __init__(self, fd: int | None) -> None:
        """Prepare to write to ``fd``; with None, a closed one, everything is discarded."""
        self.fd = -1
        self.failure: OSError | None = None  # set when the reader is gone; then all is discarded
        self.lost: OSError | None = None  # set when something was discarded; for a message
        self.waiting = False  # for the descriptor to take more
        self._pending: deque[memoryview] = deque()
        self._size = 0
        self._never_blocks = True
        if fd is None:
            self.failure = OSError(errno.EBADF, os.strerror(errno.EBADF))
            return
        kind = os.fstat(fd).st_mode
        if stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):
            self.fd = self._open_anew(fd)
        if self.fd < 0:
            self.fd = os.dup(fd)
            self._never_blocks = stat.S_ISREG(kind)

    @staticmethod
    def _open_anew(fd: int) -> int:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            return os.open(f"/proc/self/fd/{fd}", flags)
        except OSError:
            return -1

    def put(self, data: bytes) -> None:
        """Add bytes to what is to be written; ``flush`` writes."""
        if self.failure is None and data:
            self._pending.append(memoryview(data))
            self._size += len(data)

    @property
    def full(self) -> bool:
        """Whether more waits than should."""
        return self._size > _FULL

    @property
    def pending(self) -> int:
        """Bytes that are not written."""
        return self._size

    def flush(self) -> None:
        """Write as much as the descriptor takes now."""
        while self._pending:
            try:
                written = self._write()
            except BlockingIOError:
                break
            except OSError as failure:
                self._pending.clear()
                self.lost, self._size = failure, 0
                if failure.errno not in _DISK_IS_FULL:
                    self.failure = failure
                break
            self._size -= written
            while written:
                first = self._pending.popleft()
                if written < len(first):
                    self._pending.appendleft(first[written:])
                    break
                written -= len(first)
        self.waiting = bool(self._pending)

    def _write(self) -> int:
        if self._never_blocks:
            return os.writev(self.fd, list(islice(self._pending, _MOST_BUFFERS)))
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        if not poll.poll(0):
            raise BlockingIOError
        return os.write(self.fd, self._pending[0][:_SURE])

    def close(self) -> None:
        """Close our copy of the descriptor; what is pending is lost."""
        self._pending.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.failure = self.failure or OSError(errno.EBADF, os.strerror(errno.EBADF))
