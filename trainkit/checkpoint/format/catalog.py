"""What lies in a checkpoint root: committed, uncommitted, set aside. Reads no tensors."""

import json
import logging
from collections.abc import Iterator

from trainkit.checkpoint.format.layout import MANIFEST, QUARANTINE, StepFolder
from trainkit.checkpoint.format.manifest import Manifest
from trainkit.errors import (
    CheckpointDamagedError,
    EnvironmentFaultError,
    InputMissingError,
    TrainkitError,
)
from trainkit.storage import Storage

__all__ = [
    "committed",
    "quarantine",
    "read_manifest",
    "refuse_foreign",
    "uncommitted",
    "valid",
]

log = logging.getLogger(__name__)

_OTHERS = (".distcp", ".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".index", ".ubj")
"""Endings of files that make a folder somebody else's checkpoint."""


def step_folders(storage: Storage) -> list[StepFolder]:
    """All folders of steps, newest first."""
    found = (StepFolder.parse(name) for name in storage.names())
    folders = [folder for folder in found if folder is not None]
    return sorted(folders, key=lambda folder: folder.age, reverse=True)


def committed(storage: Storage, *, set_aside: bool = False) -> list[StepFolder]:
    """Folders with a manifest, newest first.

    Args:
        storage: of the root.
        set_aside: whether those in quarantine count.
    """
    skipped = () if set_aside else storage.names(QUARANTINE)
    return [
        folder
        for folder in step_folders(storage)
        if folder.name not in skipped and _has_manifest(storage, folder)
    ]


def uncommitted(storage: Storage) -> list[StepFolder]:
    """Folders without a manifest, newest first: saves under way, or cut off."""
    return [folder for folder in step_folders(storage) if not _has_manifest(storage, folder)]


def valid(storage: Storage) -> Iterator[tuple[StepFolder, Manifest]]:
    """Committed folders whose manifest is whole and whose files have their sizes, newest first.

    One folder a step: a later save of the same step stands for it.
    """
    seen = set()
    for folder in committed(storage):
        if folder.step in seen:
            continue
        try:
            manifest = read_manifest(storage, folder)
        except (CheckpointDamagedError, EnvironmentFaultError) as reason:
            log.debug("%s does not count: %s", folder.name, reason)
            continue
        seen.add(folder.step)
        yield folder, manifest


def read_manifest(storage: Storage, folder: StepFolder, *, with_files: bool = True) -> Manifest:
    """Read a manifest, and check that the files it lists are there with their sizes.

    Args:
        storage: of the root.
        folder: of the step.
        with_files: False leaves the files unasked for, which costs a request each.

    Raises:
        CheckpointDamagedError: manifest or files are not whole; the message names the first.
        EnvironmentFaultError: a format that this version cannot read.
    """
    try:
        manifest = Manifest.from_bytes(storage.read(f"{folder.name}/{MANIFEST}"))
    except InputMissingError:
        raise CheckpointDamagedError(f"{storage.url}/{folder.name} has no manifest now") from None
    except TrainkitError as reason:
        raise type(reason)(f"{storage.url}/{folder.name}: {reason}") from None
    if (manifest.step, manifest.generation, manifest.attempt) != (folder.step, *folder.age):
        raise CheckpointDamagedError(
            f"{storage.url}/{folder.name} holds the manifest of step {manifest.step}, generation "
            f"{manifest.generation}, attempt {manifest.attempt}"
        )
    for path, record in manifest.files.items() if with_files else ():
        size = storage.size(f"{folder.name}/{path}")
        if size != record.size:
            found = "is missing" if size is None else f"has {size} bytes"
            raise CheckpointDamagedError(
                f"{storage.url}/{folder.name}/{path} {found}; the manifest lists {record.size} "
                f"bytes"
            )
    return manifest


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


def _has_manifest(storage: Storage, folder: StepFolder) -> bool:
    return storage.size(f"{folder.name}/{MANIFEST}") is not None
