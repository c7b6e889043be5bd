"""What lies in a checkpoint root: committed, uncommitted, set aside. Reads no tensors."""

import errno
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from trainkit.checkpoint.format.layout import MANIFEST, PINS, QUARANTINE, StepFolder
from trainkit.checkpoint.format.manifest import Manifest
from trainkit.checkpoint.format.pins import pinned
from trainkit.errors import (
    CheckpointDamagedError,
    EnvironmentFaultError,
    InputMissingError,
    TrainkitError,
)
from trainkit.storage import ObjectInfo, Storage

__all__ = [
    "Root",
    "check_sizes",
    "committed",
    "look",
    "quarantine",
    "read_manifest",
    "read_own_manifest",
    "refuse_foreign",
    "step_folders",
    "uncommitted",
    "valid",
]

log = logging.getLogger(__name__)

_FEW = 16
"""Folders that are looked at one by one; retention leaves fewer as a rule."""

_OTHERS = (".distcp", ".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".index", ".ubj")
"""Endings of files that make a folder somebody else's checkpoint."""


def step_folders(storage: Storage) -> list[StepFolder]:
    """All folders of steps, newest first."""
    return _parsed(storage.names())


@dataclass(frozen=True, slots=True)
class Root:
    """What one look at a root saw; folders newest first."""

    committed: list[StepFolder]
    """With a manifest, and not in quarantine."""
    set_aside: list[StepFolder]
    """With a manifest, and in quarantine."""
    uncommitted: list[StepFolder]
    """Without one: saves under way, or cut off."""
    gone: list[str]
    """Names of folders that were pinned, and are not there."""


def look(storage: Storage) -> Root:
    """Look at a root: up to three listings, and one request a folder or one more listing.

    Where there are many folders, one listing of everything takes fewer requests.
    """
    names = storage.names()
    folders, marks = _folders_and_marks(storage, names)
    pins = pinned(storage) if PINS in names else frozenset()
    if len(folders) <= _FEW:
        whole = {folder for folder in folders if _has_manifest(storage, folder)}
    else:
        there = storage.tree()
        whole = {folder for folder in folders if f"{folder.name}/{MANIFEST}" in there}
    return Root(
        committed=[f for f in folders if f in whole and f.name not in marks],
        set_aside=[f for f in folders if f in whole and f.name in marks],
        uncommitted=[f for f in folders if f not in whole],
        gone=sorted(pins.difference(names)),
    )


def committed(storage: Storage, *, set_aside: bool = False) -> list[StepFolder]:
    """Folders with a manifest, newest first.

    Args:
        storage: of the root.
        set_aside: whether those in quarantine count.
    """
    root = look(storage)
    found = [*root.committed, *(root.set_aside if set_aside else ())]
    return sorted(found, key=lambda folder: folder.age, reverse=True)


def uncommitted(storage: Storage) -> list[StepFolder]:
    """Folders without a manifest, newest first: saves under way, or cut off."""
    return look(storage).uncommitted


def valid(storage: Storage) -> Iterator[tuple[StepFolder, Manifest]]:
    """Committed folders whose manifest is whole and whose files have their sizes, newest first.

    One folder a step: a later save of the same step stands for it. The first few are looked at
    one by one, as far as the caller goes; the others in one listing of everything.
    """
    seen = set()
    everything: dict[str, dict[str, ObjectInfo]] | None = None
    folders, marks = _folders_and_marks(storage, storage.names())
    for number, folder in enumerate(folder for folder in folders if folder.name not in marks):
        if folder.step in seen:
            continue
        if number >= _FEW and everything is None:
            everything = _by_folder(storage.tree())
        there = None if everything is None else everything.get(folder.name, {})
        if there is not None and MANIFEST not in there:
            continue
        try:
            manifest = read_own_manifest(storage, folder)
            check_sizes(storage, folder, manifest, there)
        except (CheckpointDamagedError, EnvironmentFaultError) as reason:
            log.debug("%s does not count: %s", folder.name, reason)
            continue
        seen.add(folder.step)
        yield folder, manifest


def read_manifest(storage: Storage, folder: StepFolder) -> Manifest:
    """Read a manifest, and check that the files it lists are there with their sizes.

    Raises:
        CheckpointDamagedError: manifest or files are not whole; the message names the first.
        EnvironmentFaultError: a format that this version cannot read.
    """
    manifest = read_own_manifest(storage, folder)
    check_sizes(storage, folder, manifest)
    return manifest


def read_own_manifest(storage: Storage, folder: StepFolder) -> Manifest:
    """Read a manifest, and check that it belongs to its folder; no file is looked at.

    Raises:
        CheckpointDamagedError: it is not whole, or another folder's.
        EnvironmentFaultError: a format that this version cannot read.
    """
    try:
        manifest = _read_twice(storage, f"{folder.name}/{MANIFEST}")
    except InputMissingError:
        raise CheckpointDamagedError(f"{storage.url}/{folder.name} has no manifest now") from None
    except TrainkitError as reason:
        raise type(reason)(f"{storage.url}/{folder.name}: {reason}") from None
    if (manifest.step, manifest.generation, manifest.attempt) != (folder.step, *folder.age):
        raise CheckpointDamagedError(
            f"{storage.url}/{folder.name} holds the manifest of step {manifest.step}, generation "
            f"{manifest.generation}, attempt {manifest.attempt}"
        )
    return manifest


def _read_twice(storage: Storage, path: str) -> Manifest:
    """Read a manifest; again where it is not whole, since networks garble what a store keeps well.

    As ``read_chunk`` does, and only a difference between the two readings is anybody's to know.
    """
    data = storage.read(path)
    try:
        return Manifest.from_bytes(data)
    except CheckpointDamagedError:
        again = storage.read(path)
        if again == data:
            size = storage.size(path)
            if size is not None and size > len(data):  # no damage, nor a save that was cut off
                text = f"the store sent {len(data)} of {size} bytes"
                raise OSError(errno.EIO, text, f"{storage.url}/{path}") from None
            raise
    manifest = Manifest.from_bytes(again)
    log.warning("%s/%s was garbled on the way, and was whole when read again", storage.url, path)
    return manifest


def check_sizes(
    storage: Storage,
    folder: StepFolder,
    manifest: Manifest,
    there: Mapping[str, ObjectInfo] | None = None,
) -> None:
    """Check that the files of a manifest are there with their sizes.

    Args:
        storage: of the root.
        folder: of the step.
        manifest: that lies in it.
        there: what lies in the folder; it is listed if this is not given.

    Raises:
        CheckpointDamagedError: one is not; the message names it.
    """
    there = storage.tree(folder.name) if there is None else there
    for path, record in manifest.files.items():
        if path in there and there[path].size == record.size:
            continue
        # A listing may be older than the files: of a network mount, or made before the commit.
        size = storage.size(f"{folder.name}/{path}")
        if size != record.size:
            found = "is missing" if size is None else f"has {size} bytes"
            raise CheckpointDamagedError(
                f"{storage.url}/{folder.name}/{path} {found}; the manifest lists {record.size} "
                f"bytes"
            )


def quarantine(storage: Storage, folder: StepFolder, reason: str) -> None:
    """Mark a damaged checkpoint, so that it is passed over; nothing of it is removed.

    One that has gone in the meantime, by another process's retention, gets no mark.
    """
    if not _has_manifest(storage, folder):
        return
    storage.make_folder(QUARANTINE)
    text = json.dumps({"reason": reason}, indent=1)
    try:
        storage.create(f"{QUARANTINE}/{folder.name}", text.encode())
    except FileExistsError:
        log.debug("%s is in quarantine already", folder.name)


def refuse_foreign(storage: Storage) -> None:
    """Refuse a root that is another kind of folder.

    Raises:
        EnvironmentFaultError: the message says what it looks like, and what to give instead.
    """
    try:
        names = storage.names()
    except NotADirectoryError:
        raise EnvironmentFaultError(f"{storage.url} is a file; expected a folder") from None
    if MANIFEST in names:
        raise EnvironmentFaultError(
            f"{storage.url} is the folder of one step; expected the folder that holds the "
            f"step-… folders, one above it"
        )
    alien = [name for name in names if name == ".metadata" or name.endswith(_OTHERS)]
    if alien and not any(StepFolder.parse(name) for name in names):
        raise EnvironmentFaultError(
            f"{storage.url} holds {alien[0]} and no step-… folder: it is not a folder of trainkit "
            f"checkpoints. Give an empty folder, or the one that a run saved to."
        )


def _folders_and_marks(
    storage: Storage, names: Sequence[str]
) -> tuple[list[StepFolder], frozenset[str]]:
    """All folders of steps, newest first, and the names of those in quarantine."""
    marks = storage.names(QUARANTINE) if QUARANTINE in names else ()
    return _parsed(names), frozenset(marks)


def _parsed(names: Iterable[str]) -> list[StepFolder]:
    folders = [folder for name in names if (folder := StepFolder.parse(name)) is not None]
    return sorted(folders, key=lambda folder: folder.age, reverse=True)


def _by_folder(tree: Mapping[str, ObjectInfo]) -> dict[str, dict[str, ObjectInfo]]:
    found: dict[str, dict[str, ObjectInfo]] = {}
    for path, info in tree.items():
        folder, _, rest = path.partition("/")
        found.setdefault(folder, {})[rest] = info
    return found


def _has_manifest(storage: Storage, folder: StepFolder) -> bool:
    return storage.size(f"{folder.name}/{MANIFEST}") is not None
