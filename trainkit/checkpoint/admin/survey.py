"""All step folders of a root at one glance: one listing, and one read a manifest."""

import datetime
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum

from trainkit.checkpoint.admin.locating import no_checkpoints
from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.layout import MANIFEST, PINS, QUARANTINE, StepFolder
from trainkit.checkpoint.format.manifest import Manifest
from trainkit.errors import CheckpointDamagedError, EnvironmentFaultError, InputMissingError
from trainkit.storage import ObjectInfo, Storage

__all__ = [
    "Listing",
    "State",
    "StepFiles",
    "StepSummary",
    "list_root",
    "quarantine_reason",
    "size_problems",
    "survey",
    "without_place",
]

_READERS = 16
"""Manifests that are read at a time: in an object store each read is a wait for the network."""


class State(StrEnum):
    """What a step folder is, as far as was looked."""

    COMMITTED = "committed"
    UNCOMMITTED = "uncommitted"
    DAMAGED = "damaged"
    QUARANTINED = "quarantined"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class StepFiles:
    """A step folder as the listing of its root shows it."""

    folder: StepFolder
    files: Mapping[str, ObjectInfo]

    @property
    def has_manifest(self) -> bool:
        """Whether it was committed when it was listed."""
        return MANIFEST in self.files

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(info.size for info in self.files.values())

    @property
    def modified(self) -> float | None:
        """When the last of its files was written, in seconds since 1970, if that is known."""
        known = [info.modified for info in self.files.values() if info.modified is not None]
        return max(known, default=None)


@dataclass(frozen=True, slots=True)
class Listing:
    """One listing of a root; ``steps`` are newest first."""

    steps: tuple[StepFiles, ...]
    marks: frozenset[str]
    pins: frozenset[str]
    others: Mapping[str, ObjectInfo]
    """What lies in no step folder."""


@dataclass(frozen=True, slots=True)
class StepSummary:
    """A step folder with what its manifest says of it."""

    folder: StepFolder
    state: State
    size: int
    """Bytes of all files that are there."""
    written: float | None
    """When it was committed, or else last written to: seconds since 1970, if known."""
    pinned: bool = False
    reason: str = ""
    """Why it is damaged, quarantined or unreadable."""
    world_size: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


def list_root(storage: Storage, *, empty_is_error: bool = True) -> Listing:
    """List a root once, at any depth.

    Raises:
        InputMissingError: there is no step folder; the message says what there is instead.
    """
    steps: dict[StepFolder, dict[str, ObjectInfo]] = {}
    others: dict[str, ObjectInfo] = {}
    try:
        tree = storage.tree()
    except NotADirectoryError:
        raise no_checkpoints(storage) from None
    for path, info in tree.items():
        name, _, rest = path.partition("/")
        folder = StepFolder.parse(name) if "/" in path else None
        if folder is None:
            others[path] = info
        else:
            steps.setdefault(folder, {})[rest] = info
    if not steps and empty_is_error:
        raise no_checkpoints(storage)
    newest_first = sorted(steps, key=lambda folder: folder.age, reverse=True)
    return Listing(
        tuple(StepFiles(folder, steps[folder]) for folder in newest_first),
        marks=_below(QUARANTINE, others),
        pins=_below(PINS, others),
        others=others,
    )


def survey(storage: Storage) -> list[StepSummary]:
    """All step folders of a root, newest save first. No tensor is read.

    A folder that goes away while this looks is left out.

    Raises:
        InputMissingError: there is no step folder; the message says what there is instead.
    """
    listing = list_root(storage)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="trainkit-manifests") as pool:
        found = pool.map(lambda files: _summary(storage, files, listing), listing.steps)
        return [summary for summary in found if summary is not None]


def size_problems(files: StepFiles, manifest: Manifest) -> Iterator[str]:
    """What is wrong with the sizes of the files that a manifest lists."""
    for path, record in manifest.files.items():
        info = files.files.get(path)
        if info is None or info.size != record.size:
            found = "is missing" if info is None else f"has {info.size} bytes"
            yield f"{path} {found}; the manifest lists {record.size} bytes"


def quarantine_reason(storage: Storage, folder: StepFolder) -> str:
    """Why a checkpoint was set aside, as its mark says."""
    try:
        return str(json.loads(storage.read(f"{QUARANTINE}/{folder.name}"))["reason"])
    except InputMissingError:
        return "its mark has just been removed"
    except (ValueError, KeyError, TypeError):
        return "its mark gives no reason"


def without_place(error: BaseException, storage: Storage, folder: StepFolder) -> str:
    """The message of an error that begins with the place, which the reader knows."""
    return str(error).removeprefix(f"{storage.url}/{folder.name}").lstrip(":/ ")


def _summary(storage: Storage, files: StepFiles, listing: Listing) -> StepSummary | None:
    pinned = files.folder.name in listing.pins
    if not files.has_manifest:
        return StepSummary(files.folder, State.UNCOMMITTED, files.size, files.modified, pinned)
    state, reason, manifest = State.COMMITTED, "", None
    try:
        manifest = catalog.read_own_manifest(storage, files.folder)
        reason = next(size_problems(files, manifest), "")
        state = State.DAMAGED if reason else state
    except CheckpointDamagedError as error:
        state, reason = State.DAMAGED, without_place(error, storage, files.folder)
    except EnvironmentFaultError as error:
        state, reason = State.UNREADABLE, without_place(error, storage, files.folder)
    if state is State.DAMAGED and storage.size(f"{files.folder.name}/{MANIFEST}") is None:
        return None  # removed since the listing: the manifest goes first
    if files.folder.name in listing.marks:
        state, reason = State.QUARANTINED, quarantine_reason(storage, files.folder)
    written = files.files[MANIFEST].modified
    if manifest is None:
        return StepSummary(files.folder, state, files.size, written, pinned, reason)
    return StepSummary(
        files.folder,
        state,
        files.size,
        _moment(manifest.created, written),
        pinned,
        reason,
        manifest.world_size,
        manifest.metrics,
    )


def _moment(created: str, otherwise: float | None) -> float | None:
    """Copies have new times of files, so what the manifest says goes first."""
    try:
        return datetime.datetime.fromisoformat(created).timestamp()
    except ValueError:
        return otherwise


def _below(folder: str, others: Mapping[str, ObjectInfo]) -> frozenset[str]:
    begin = f"{folder}/"
    return frozenset(path[len(begin) :] for path in others if path.startswith(begin)) - {""}
