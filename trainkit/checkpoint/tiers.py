"""The local tier on all ranks together: opening it, and emptying it."""

import contextlib
import errno
import logging
import os
import secrets
import uuid
from typing import Any

from trainkit.checkpoint.agreement import Outcome, on_all_ranks
from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.checksums import digest
from trainkit.checkpoint.format.layout import MANIFEST, TIER
from trainkit.checkpoint.save.commit import create_once
from trainkit.checkpoint.save.tiers import LocalTier, jobs_in, remove_folder
from trainkit.coordination import Communicator
from trainkit.errors import TrainkitError, UsageError
from trainkit.storage import LocalStorage, Storage, open_storage

__all__ = ["clear_tier", "open_tier"]

log = logging.getLogger(__name__)


def open_tier(
    path: str | os.PathLike[str] | None,
    root: Storage,
    communicator: Communicator,
    generation: int,
    *,
    timeout: float,
) -> LocalTier | None:
    """Open the tier below ``path`` on all ranks, and find out whether they see the same folder.

    One that fails on any rank is none on all of them, with a warning.

    Args:
        path: of the tier; None for none.
        root: where checkpoints go after it.
        communicator: of the ranks.
        generation: that this run claimed from the root.
        timeout: seconds for the slowest rank.

    Raises:
        UsageError: it is no local path, or it is the root.
        NoPermissionError: nothing can be written there.
    """
    if path is None:
        return None
    rank = communicator.rank
    token = f".seen-{uuid.uuid4().hex}"

    def identify() -> str:
        above = open_storage(path)
        if not isinstance(above, LocalStorage):
            raise UsageError(f"local_tier={path!r}: expected a folder on a disk of this node")
        if above.url == root.url:
            raise UsageError(f"local_tier={path!r} is the folder of checkpoints itself")
        if os.path.exists(above.url) and not os.path.isdir(above.url):
            raise UsageError(f"local_tier={path!r} is a file; expected a folder")
        return _identity(root) if rank == 0 else ""

    def prepare(run: str) -> str:
        above = LocalStorage(path)
        try:
            mark(above, run)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            # What a save that was cut off has left is the least of what can go.
            _remove_cut_off(LocalTier(f"{above.url}/{run}", False, generation))
            mark(above, run)
        return f"{above.url}/{run}"

    def mark(above: LocalStorage, run: str) -> None:
        above.make_folder(run)
        # The name says nothing to people, so a file does.
        if above.size(f"{run}/root") is None:
            create_once(above, f"{run}/root", root.url.encode())
        if rank == 0:
            above.create(f"{run}/{token}", b"")

    identity = on_all_ranks(communicator, identify, timeout=timeout).check()[0]
    # Jobs that share a node must not meet, nor this one and what was at the same URL before.
    run = f"run-{digest(f'{root.url} {identity}'.encode())[:16]}"
    prepared = on_all_ranks(communicator, lambda: prepare(run), timeout=timeout)
    if not _works(prepared):
        return None
    folder, storage = prepared.check()[rank], LocalStorage(path)
    # Rank 0's token, whose name the others cannot know.
    first = communicator.broadcast_object(f"{run}/{token}", timeout=timeout)
    seen = on_all_ranks(communicator, lambda: storage.size(first) is not None, timeout=timeout)
    if rank == 0:
        with contextlib.suppress(OSError, TrainkitError):
            storage.delete(first)
    return LocalTier(folder, all(seen.check()), generation) if _works(seen) else None


def clear_tier(tier: LocalTier) -> None:
    """Remove what this run and those before it have in the tier; a failure is only said."""
    storage = tier.storage()
    try:
        for folder in catalog.step_folders(storage):
            if folder.generation <= tier.generation:
                remove_folder(storage, folder)
    except (OSError, TrainkitError) as error:
        log.warning("the local tier %s could not be emptied: %s", tier.folder, error)


def _identity(root: Storage) -> str:
    """What tells this root from another one that lies, or will lie, at the same URL."""
    try:
        root.create(TIER, secrets.token_hex(16).encode())
    except FileExistsError:
        log.debug("%s had a tier before", root.url)
    return root.read(TIER).decode("ascii", "replace")


def _remove_cut_off(tier: LocalTier) -> None:
    """Remove steps of which nobody's part is whole."""
    storage = tier.storage()
    for folder in catalog.step_folders(storage):
        whole = storage.size(f"{folder.name}/{MANIFEST}") is not None
        if not whole and not jobs_in(storage, folder):
            remove_folder(storage, folder)


def _works(outcome: Outcome[Any]) -> bool:
    """Whether no rank's tier failed by an I/O error, such as that of a full disk."""
    if not outcome.io_only:
        outcome.check()
        return True
    failure = outcome.failures[0]
    log.warning("there is no local tier, since rank %d failed: %s", failure.rank, failure.text)
    return False
