"""The folder for temporary files: compilers, sockets and downloads need it."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator

from trainkit import config
from trainkit.doctor.finding import Finding, Question, Status
from trainkit.doctor.sizes import size
from trainkit.resources.space import Space, existing_parent, space_of

__all__ = ["check", "folder_finding"]

_ENOUGH = 1 << 30
_LEAST = 16 << 20
_FEW_FILES = 1000


def check(question: Question) -> Iterator[Finding]:
    """Write to the folder, and look at its room."""
    del question
    named = config.environ().get("TMPDIR")
    yield folder_finding(named or tempfile.gettempdir())


def folder_finding(folder: str) -> Finding:
    """What can be written to ``folder``."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 65536)
            file.flush()
            os.fsync(file.fileno())
        space = space_of(folder)
    except OSError as error:
        what = f"nothing can be written to {folder}, for temporary files: {error.strerror}"
        return Finding("disk", Status.BROKEN, what, _advice(error, folder), {"folder": folder})
    return _judge(folder, space)


def _judge(folder: str, space: Space) -> Finding:
    found = f"{size(space.free)} of {size(space.total)} free in {folder}"
    values = {"folder": folder, "total": space.total, "free": space.free, "files": space.files}
    if space.files is not None and space.files < _FEW_FILES:
        found += f", room for {space.files} files"
        advice = f"Remove files from {folder}, or set TMPDIR to a larger volume."
        return Finding("disk", Status.WARNING, found, advice, values)
    if space.free < _LEAST:
        status = Status.BROKEN
    elif space.free < _ENOUGH:
        status = Status.WARNING
    else:
        return Finding("disk", Status.OK, found, values=values)
    advice = "Mount a larger emptyDir there, raise ephemeral-storage, or set TMPDIR."
    return Finding("disk", status, found, advice, values)


def _advice(error: OSError, folder: str) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"It is full: make room in {folder}, or set TMPDIR to a larger volume."
    if error.errno == errno.ENOENT:
        return f"Make the folder (there is {existing_parent(folder)}), or correct TMPDIR."
    if error.errno == errno.EROFS:
        return "The container's file system is read-only: mount an emptyDir at /tmp."
    return "Mount an emptyDir at /tmp, or set TMPDIR to a folder that this user may write to."
