"""What is left of saves that were cut off: found first, and removed when a person says so."""

import errno
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from trainkit.checkpoint.admin.survey import Listing, StepFiles, list_root
from trainkit.checkpoint.format.layout import MANIFEST, PINS, QUARANTINE, StepFolder
from trainkit.errors import NoPermissionError
from trainkit.storage import ObjectInfo, Storage, Upload

__all__ = ["DEFAULT_AGE", "Leftover", "find_leftovers", "remove_leftover"]

log = logging.getLogger(__name__)

DEFAULT_AGE = 24 * 3600.0
"""Seconds after which nobody is still writing, unless told otherwise."""

_NOT_TOLD = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP)
"""How a server says that it keeps no list of uploads."""

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that is part of no checkpoint."""

    path: str
    kind: str
    """``uncommitted``, ``mark``, ``pin``, ``temporary`` or ``upload``."""
    size: int
    age: float | None
    """Seconds since it was last written to, if known."""
    reason: str
    upload: Upload | None = None
    """What is to be aborted, where it is an ``upload``."""


def find_leftovers(
    storage: Storage, *, older_than: float = DEFAULT_AGE, now: float | None = None
) -> list[Leftover]:
    """Find what can go, and change nothing.

    These can go: uncommitted folders of a process that another one has followed and saved
    since, which cannot commit any more; uncommitted folders of the newest process, which may
    be alive, temporary files, and uploads in parts that a store holds and shows in no listing,
    all three only if nothing was written there for ``older_than`` seconds; marks and pins whose
    folder has gone. Nothing that was committed can go.

    Args:
        storage: of the root.
        older_than: seconds.
        now: seconds since 1970; the present by default.

    Raises:
        InputMissingError: there is neither a step folder nor anything that was left.
    """
    now = time.time() if now is None else now
    listing = list_root(storage, empty_is_error=False)
    uploads = list(_uploads(storage, older_than, now))
    if not listing.steps and not listing.others and not uploads:
        list_root(storage)
    found = [*_uncommitted(listing, older_than, now), *_without_folder(listing, now)]
    return [*found, *_temporaries(listing, older_than, now), *uploads]


def remove_leftover(storage: Storage, leftover: Leftover) -> bool:
    """Remove one; False if it has become part of a checkpoint since it was found.

    Whoever still sends an upload that is aborted gets an error at its next part.
    """
    if leftover.upload is not None:
        return storage.abort_upload(leftover.upload)
    name = leftover.path.rpartition("/")[2]
    if leftover.kind == "uncommitted" and storage.size(f"{name}/{MANIFEST}") is not None:
        return False
    # A listing takes a while: a folder may be newer than the one that did not show it.
    if leftover.kind in ("mark", "pin") and storage.tree(name):
        return False
    storage.delete(leftover.path)
    return True


def _uncommitted(listing: Listing, older_than: float, now: float) -> Iterator[Leftover]:
    newest = max((files.folder.generation for files in listing.steps), default=0)
    for files in listing.steps:
        if files.has_manifest:
            continue
        age = _age(files.modified, now)
        if files.folder.generation < newest:
            reason = f"generation {newest} has saved since"
        elif age is not None and age > older_than:
            reason = "nothing was written to it for that long"
        else:
            continue
        yield Leftover(files.folder.name, "uncommitted", files.size, age, reason)


def _without_folder(listing: Listing, now: float) -> Iterator[Leftover]:
    there = {files.folder.name for files in listing.steps}
    for kind, above, names in (("mark", QUARANTINE, listing.marks), ("pin", PINS, listing.pins)):
        for name in sorted(names - there):
            if StepFolder.parse(name) is not None:
                path = f"{above}/{name}"
                info = listing.others[path]
                age = _age(info.modified, now)
                yield Leftover(path, kind, info.size, age, f"{name} is not there")


def _temporaries(listing: Listing, older_than: float, now: float) -> Iterator[Leftover]:
    for path, info in [*listing.others.items(), *_in_committed(listing.steps)]:
        age = _age(info.modified, now)
        if _TEMPORARY.fullmatch(path.rpartition("/")[2]) and age is not None and age > older_than:
            yield Leftover(path, "temporary", info.size, age, "its write was cut off")


def _uploads(storage: Storage, older_than: float, now: float) -> Iterator[Leftover]:
    try:
        found = storage.uploads()
    except OSError as error:
        # It may be that we may remove objects and not look for uploads: gc is of use all the same.
        if not isinstance(error, NoPermissionError) and error.errno not in _NOT_TOLD:
            raise
        log.warning("uploads that were cut off could not be looked for: %s", error)
        return
    for upload in found:
        age = _age(upload.modified, now)
        ours = StepFolder.parse(upload.path.partition("/")[0]) is not None
        if ours and age is not None and age > older_than:
            reason = "its upload was cut off"
            yield Leftover(upload.path, "upload", upload.size, age, reason, upload)


def _in_committed(steps: tuple[StepFiles, ...]) -> Iterator[tuple[str, ObjectInfo]]:
    for files in steps:
        if files.has_manifest:
            for path, info in files.files.items():
                yield f"{files.folder.name}/{path}", info


def _age(modified: float | None, now: float) -> float | None:
    return None if modified is None else max(0.0, now - modified)
