"""What is left of saves that were cut off: found first, and removed when a person says so."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from trainkit.checkpoint.admin.survey import Listing, StepFiles, list_root
from trainkit.checkpoint.format.layout import MANIFEST, PINS, QUARANTINE, StepFolder
from trainkit.storage import ObjectInfo, Storage

__all__ = ["DEFAULT_AGE", "Leftover", "find_leftovers", "remove_leftover"]

DEFAULT_AGE = 24 * 3600.0
"""Seconds after which nobody is still writing, unless told otherwise."""

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that is part of no checkpoint."""

    path: str
    kind: str
    """``uncommitted``, ``mark``, ``pin`` or ``temporary``."""
    size: int
    age: float | None
    """Seconds since it was last written to, if known."""
    reason: str


def find_leftovers(
    storage: Storage, *, older_than: float = DEFAULT_AGE, now: float | None = None
) -> list[Leftover]:
    """Find what can go, and change nothing.

    These can go: uncommitted folders of a process that another one has followed and saved
    since, which cannot commit any more; uncommitted folders of the newest process, which may
    be alive, and temporary files, both only if nothing was written there for ``older_than``
    seconds; marks and pins whose folder has gone. Nothing that was committed can go.

    Args:
        storage: of the root.
        older_than: seconds.
        now: seconds since 1970; the present by default.

    Raises:
        InputMissingError: there is neither a step folder nor anything that was left.
    """
    now = time.time() if now is None else now
    listing = list_root(storage, empty_is_error=False)
    if not listing.steps and not listing.others:
        list_root(storage)
    found = [*_uncommitted(listing, older_than, now), *_without_folder(listing, now)]
    return [*found, *_temporaries(listing, older_than, now)]


def remove_leftover(storage: Storage, leftover: Leftover) -> bool:
    """Remove one; False if it has become part of a checkpoint since it was found."""
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


def _in_committed(steps: tuple[StepFiles, ...]) -> Iterator[tuple[str, ObjectInfo]]:
    for files in steps:
        if files.has_manifest:
            for path, info in files.files.items():
                yield f"{files.folder.name}/{path}", info


def _age(modified: float | None, now: float) -> float | None:
    return None if modified is None else max(0.0, now - modified)
