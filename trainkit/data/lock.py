"""A lock among the processes of one node, which dies with its holder."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from trainkit.waiting import Deadline, wait_until

__all__ = ["node_lock"]

log = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""What file systems without locks answer: some network mounts and FUSE stores."""


@contextlib.contextmanager
def node_lock(target: Path, deadline: Deadline) -> Iterator[None]:
    """Hold the lock that belongs to ``target`` while the block runs.

    The lock is a ``flock`` on a hidden file beside ``target``: the kernel frees it when its
    holder dies. The file is removed at the end. Where the file system has no locks the block
    runs without one, so it has to be correct alone, only wasteful.

    Raises:
        DeadlineError: another process kept the lock; the message names its pid and host.
    """
    path = target.with_name(f".{target.name}.lock")
    held: list[int] = []
    try:
        wait_until(
            lambda: _take(path, held),
            what=f"another process that is fetching {target}",
            whom=lambda: _holder(path),
            deadline=deadline,
            hint="If it hangs, end it; the lock goes with it.",
        )
        yield
    finally:
        if held:
            # Still locked, so nobody else can hold the file that is unlinked here; whoever
            # waits for it sees that it is gone and makes a new one.
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            os.close(held[0])


def _take(path: Path, held: list[int]) -> bool:
    """Try once; True when the lock is held, or when there are no locks here."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_ino != os.stat(path).st_ino:
            os.close(lock)  # the last holder removed this file between our two calls
            return False
    except (BlockingIOError, FileNotFoundError):
        os.close(lock)
        return False
    except OSError as fault:
        os.close(lock)
        if fault.errno not in _NO_LOCKS:
            raise
        log.info("%s has no file locks: going on without", path.parent)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return True
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"pid {os.getpid()} on {socket.gethostname()}".encode(), 0)
    held.append(lock)
    return True


def _holder(path: Path) -> str:
    try:
        return path.read_text() or "not yet known"
    except OSError:
        return "not known"
