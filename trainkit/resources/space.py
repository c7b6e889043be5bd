"""Room in a file system, and of what kind it is."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from trainkit.resources.cgroups import read

__all__ = ["Space", "existing_parent", "filesystem_of", "mounts", "space_of"]

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Space:
    """Room in one file system, as this user may use it."""

    total: int
    """Bytes in all."""
    free: int
    """Bytes that are left to this user."""
    files: int | None
    """Files that may still be made; None where there is no such limit."""


def space_of(path: str) -> Space:
    """The room in the file system that ``path``, which must exist, lies in.

    Raises:
        OSError: it is not there, or the file system does not answer.
    """
    found = os.statvfs(path)
    files = found.f_favail if found.f_files else None
    return Space(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize, files)


def existing_parent(path: str) -> str:
    """``path``, or the nearest folder above it that is there."""
    path = os.path.abspath(path)
    while not os.path.isdir(path) and path != "/":
        path = os.path.dirname(path)
    return path


def filesystem_of(path: str, root: str = "/") -> str | None:
    """The kind of the file system that ``path`` lies in, such as ``ext4`` or ``nfs4``.

    Args:
        path: any path; it need not exist.
        root: where ``proc`` is looked for: ``/`` but for tests.
    """
    path = os.path.realpath(path)
    best, kind = "", None
    for mount, found in mounts(root):
        # Of mounts on one place the last one is seen.
        inside = path == mount or path.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, found
    return kind


def mounts(root: str = "/") -> Iterator[tuple[str, str]]:
    """Where something is mounted, and the kind of its file system, in the kernel's order.

    Args:
        root: where ``proc`` is looked for: ``/`` but for tests.
    """
    for line in (read(os.path.join(root, "proc/self/mountinfo")) or "").splitlines():
        before, dash, after = line.partition(" - ")
        words = before.split()
        if dash and len(words) >= 5:
            yield _OCTAL.sub(lambda found: chr(int(found[1], 8)), words[4]), after.split()[0]
