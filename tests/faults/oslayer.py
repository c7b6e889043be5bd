"""Hooks on the operations of this process on files, as they go through the module ``os``.

One layer serves to kill, stop or fail at the n-th operation, to record all of them, and to play
a file system that lacks some. ``test_layer.py`` holds it against strace: what changes a file
and does not go through here would be seen there.
"""

import contextlib
import io
import mmap
import os
import threading
from dataclasses import dataclass

CHANGING = (
    "open", "write", "pwrite", "writev", "pwritev", "fsync", "fdatasync", "link", "unlink",
    "remove", "mkdir", "rmdir", "rename", "replace", "ftruncate", "truncate", "posix_fallocate",
)  # fmt: skip
"""Functions of ``os`` that are hooked. ``open`` counts where it may make or cut a file."""

_MAKES = os.O_CREAT | os.O_TRUNC


@dataclass
class Operation:
    """One call: the name of the function, paths in full, and what else belongs to it."""

    name: str
    path: str | None = None
    second: str | None = None
    fd: int | None = None
    data: bytes | None = None
    offset: int | None = None
    length: int | None = None
    flags: int = 0
    result: object = None


class Layer:
    """Hooks while it is entered. ``before`` may raise, or return how many bytes to write at
    most; ``after`` sees the result."""

    def __init__(self, before=None, after=None):
        """Hook nothing yet.

        Args:
            before: called with an `Operation`.
            after: called with it once it is done, before any other thread's operation is.
        """
        self._before, self._after = before, after
        self._in_order = threading.RLock() if after else contextlib.nullcontext()
        self._real = {}
        self.count = 0

    def __enter__(self):
        for name in (*CHANGING, "fdopen", "close"):
            self._real[name] = getattr(os, name)
        for name in CHANGING:
            setattr(os, name, self._hooked(name))
        os.fdopen = self._fdopen
        return self

    def __exit__(self, *_):
        for name, function in self._real.items():
            setattr(os, name, function)

    def _hooked(self, name):
        real = self._real[name]
        describe = getattr(self, f"_describe_{name}", self._describe_paths)

        def hooked(*args, **kwargs):
            with self._in_order:
                operation = describe(name, *args, **kwargs)
                if operation is None:
                    return real(*args, **kwargs)
                self.count += 1
                most = self._before(operation) if self._before else None
                if most is not None and operation.data is not None:
                    operation.data = operation.data[:most]
                    short = operation.data if name in ("write", "pwrite") else [operation.data]
                    args = (args[0], short, *args[2:])
                result = operation.result = real(*args, **kwargs)
                if self._after:
                    self._after(operation)
                return result

        return hooked

    def _fdopen(self, fd, mode="r", buffering=-1, *args, **kwargs):
        if "w" not in mode or "b" not in mode:
            return self._real["fdopen"](fd, mode, buffering, *args, **kwargs)
        raw = _Raw(fd)
        return raw if buffering == 0 else io.BufferedWriter(raw, max(buffering, 8192))

    def _describe_paths(self, name, path, second=None, *_, dir_fd=None, **__):
        if name in ("link", "rename", "replace"):
            return Operation(name, _full(path, dir_fd), _full(second, None))
        return Operation("unlink" if name == "remove" else name, _full(path, dir_fd))

    def _describe_open(self, name, path, flags, *_, dir_fd=None, **__):
        return Operation(name, _full(path, dir_fd), flags=flags) if flags & _MAKES else None

    def _describe_fsync(self, name, fd):
        return Operation("fsync", _of(fd), fd=fd)

    def _describe_fdatasync(self, name, fd):
        return Operation("fsync", _of(fd), fd=fd)

    def _describe_write(self, name, fd, data):
        path = _of(fd)
        try:
            offset = os.lseek(fd, 0, os.SEEK_CUR)
        except OSError:
            return None  # a pipe, a socket
        return Operation("write", path, fd=fd, data=bytes(data), offset=offset)

    def _describe_writev(self, name, fd, buffers):
        return self._describe_write("write", fd, b"".join(buffers))

    def _describe_pwrite(self, name, fd, data, offset):
        return Operation("write", _of(fd), fd=fd, data=bytes(data), offset=offset)

    def _describe_pwritev(self, name, fd, buffers, offset, flags=0):
        return Operation("write", _of(fd), fd=fd, data=b"".join(buffers), offset=offset)

    def _describe_ftruncate(self, name, fd, length):
        return Operation("truncate", _of(fd), fd=fd, length=length)

    def _describe_truncate(self, name, path, length):
        return Operation("truncate", _full(path, None), length=length)

    def _describe_posix_fallocate(self, name, fd, offset, length):
        return Operation("allocate", _of(fd), fd=fd, length=offset + length)


class _Raw(io.RawIOBase):
    """A file object that writes through ``os.write``, as the hooks see it."""

    def __init__(self, fd):
        self._fd = fd

    def writable(self):
        return True

    def fileno(self):
        return self._fd

    def write(self, data):
        return os.write(self._fd, data)

    def close(self):
        if not self.closed:
            try:
                super().close()
            finally:
                os.close(self._fd)


def _full(path, dir_fd):
    path = os.fsdecode(path)
    if os.path.isabs(path):
        return path
    if dir_fd is None:
        return os.path.abspath(path)
    return os.path.join(_of(dir_fd), path)


def _of(fd):
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")
    return ""


class Once:
    """A hook that acts once, at the n-th operation of this process and those that it forks.

    The count lies in memory that they share. It begins when ``arm`` is called.
    """

    def __init__(self, number, action, *, armed=True, counts=None):
        """Count from nothing.

        Args:
            number: at which operation to act, from 1; 0 never.
            action: called with the operation; its result is the hook's.
            armed: whether to count from the beginning.
            counts: called with an operation, whether it counts; all do by default.
        """
        self._number, self._action, self._counts = number, action, counts
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)
        self.arm(armed)

    def arm(self, armed=True):
        """Count from now on, or no longer."""
        self._shared[0] = armed

    @property
    def fired(self):
        """Whether it has acted."""
        return bool(self._shared[1])

    def __call__(self, operation):
        if not self._shared[0] or self.fired:
            return None
        if self._counts is not None and not self._counts(operation):
            return None
        seen = int.from_bytes(self._shared[8:16], "little") + 1
        self._shared[8:16] = seen.to_bytes(8, "little")
        if seen != self._number:
            return None
        self._shared[1] = 1
        return self._action(operation)
