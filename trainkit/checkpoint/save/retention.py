"""What stays in a checkpoint root after a commit."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Literal, TypeAlias

from trainkit.checkpoint.format.catalog import read_manifest, read_own_manifest, step_folders
from trainkit.checkpoint.format.layout import MANIFEST, QUARANTINE, StepFolder
from trainkit.checkpoint.format.manifest import Manifest
from trainkit.checkpoint.format.pins import pinned
from trainkit.checkpoint.retention import RetentionPolicy, SavedStep
from trainkit.checkpoint.save.generation import newest_generation
from trainkit.errors import (
    CheckpointDamagedError,
    EnvironmentFaultError,
    TrainkitError,
    UsageError,
)
from trainkit.storage import Storage

__all__ = ["Removal", "Retention", "discard_step", "plan_removals", "remove_step"]

log = logging.getLogger(__name__)

_LOOKED_AT_AGAIN = 3
"""Of those that stay, how many of the newest are checked again before any other goes."""


Reason: TypeAlias = Literal["not kept", "saved again", "damaged", "cut off"]


@dataclass(frozen=True, slots=True)
class Removal:
    """A step folder that is to go, and why."""

    folder: StepFolder
    reason: Reason
    """``not kept`` by the policy; ``saved again`` later under the same step; ``damaged``, and the
    policy would not keep it if it were whole; ``cut off`` before its commit."""
    num_bytes: int | None
    """Size of its files, where its manifest tells."""


class Retention:
    """Removes what a policy gives up, and what was cut off; rank 0 has one.

    Only checkpoints that are whole count. A damaged one takes no other's place, and stays for a
    person to look at as long as the policy would keep it if it were whole. The newest whole one
    and pinned ones stay in any case, and without a whole one nothing goes.

    What a save costs: three listings (root, marks, pins), and the manifest of each checkpoint
    that this process has not read before, which is the new one. Only where something is to go,
    the newest three that stay are looked at again, by one read and one listing each; then a removal
    takes three requests and those of its files. The first save of a process reads all manifests.
    """

    def __init__(self, storage: Storage, policy: RetentionPolicy, *, generation: int) -> None:
        """Begin with knowing nothing.

        Args:
            storage: of the root.
            policy: what is asked.
            generation: of this process. What was never committed under an earlier one goes: its
                process has ended, or was overtaken and cannot commit any more. So does an
                attempt of this process that failed, after the next commit. Where a later one
                has saved, nothing is touched.
        """
        self._storage = storage
        self._policy = policy
        self._generation = generation
        self._known: dict[StepFolder, SavedStep] = {}

    def apply(self) -> list[Removal]:
        """Remove what is to go, and return it.

        Raises:
            UsageError: the policy raised; nothing was removed.
            OSError: the storage failed; what was removed before stays so.
        """
        root = self._look()
        removals = self._planned(root)
        for removal in removals:
            # Forgotten first: one that is removed by half must not count as whole.
            self._known.pop(removal.folder, None)
            remove_step(self._storage, removal.folder)
        self._forget_marks(root)
        return removals

    def plan(self) -> list[Removal]:
        """What is to go now, newest first; nothing is changed.

        Raises:
            UsageError: the policy raised.
            OSError: the storage failed.
        """
        return self._planned(self._look())

    def _planned(self, root: "_Root") -> list[Removal]:
        if any(folder.generation > self._generation for folder in root.folders):
            return []
        while True:
            removals = self._chosen(root)
            torn = self._torn(root, removals) if removals else []
            if not torn:
                return removals
            root.damaged.update(torn)

    def _look(self) -> "_Root":
        """List the root, and read the manifests that are new to this process."""
        folders = step_folders(self._storage)
        marks, pins = frozenset(self._storage.names(QUARANTINE)), pinned(self._storage)
        self._known = {folder: self._known[folder] for folder in folders if folder in self._known}
        root = _Root(folders, self._known, marks, pins)
        for folder in folders:
            if folder in self._known:
                continue
            if self._storage.size(f"{folder.name}/{MANIFEST}") is None:
                root.cut_off.add(folder)
                continue
            try:
                manifest = read_own_manifest(self._storage, folder)
            except (CheckpointDamagedError, EnvironmentFaultError) as reason:
                log.debug("%s does not count: %s", folder.name, reason)
                root.damaged.add(folder)
            else:
                self._known[folder] = _saved_step(manifest)
        root.damaged.update(f for f in self._known if f.name in marks)
        return root

    def _chosen(self, root: "_Root") -> list[Removal]:
        """What the policy gives up of what is in the root."""
        whole = root.whole()
        if not whole:  # nothing to fall back on: remove nothing
            return []
        kept = self._ask(whole.values()) | {next(iter(whole)).step}
        spared = self._ask(root.as_if_whole().values()) if root.damaged else frozenset()
        newest_of = {folder.step: folder.age for folder in whole}
        # All ranks have left an attempt behind once a later one of this process was committed.
        over = max([(self._generation, -1), *(f.age for f in whole)])
        removals = []
        for folder in root.folders:
            reason: Reason | None = None
            if folder in root.cut_off:
                reason = "cut off" if folder.age < over else None
            elif newest_of.get(folder.step, folder.age) > folder.age:
                reason = "saved again"
            elif folder in root.damaged:
                reason = None if folder.step in spared else "damaged"
            elif folder.step not in kept:
                reason = "not kept"
            if reason is not None and folder.name not in root.pins:
                known = root.known.get(folder)
                removals.append(Removal(folder, reason, known.num_bytes if known else None))
        return removals

    def _ask(self, saved: Iterable[SavedStep]) -> frozenset[int]:
        try:
            return frozenset(self._policy.keep(list(saved)))
        except Exception as error:
            raise UsageError(
                f"the retention policy {self._policy!r} raised {error!r}, so nothing is removed"
            ) from error

    def _torn(self, root: "_Root", removals: list[Removal]) -> list[StepFolder]:
        """Of the newest that would stay, those that are not whole any more."""
        going = {removal.folder for removal in removals}
        staying = (folder for folder in root.whole() if folder not in going)
        torn = []
        for folder in islice(staying, _LOOKED_AT_AGAIN):
            try:
                read_manifest(self._storage, folder)
            except (CheckpointDamagedError, EnvironmentFaultError) as reason:
                log.debug("%s does not count: %s", folder.name, reason)
                torn.append(folder)
        return torn

    def _forget_marks(self, root: "_Root") -> None:
        """Remove marks of damaged folders that a person has taken away."""
        there = {folder.name for folder in root.folders}
        for name in root.marks - there:
            self._storage.delete(f"{QUARANTINE}/{name}")


@dataclass(slots=True)
class _Root:
    """What lies in a root at one moment; folders are newest first."""

    folders: list[StepFolder]
    known: Mapping[StepFolder, SavedStep]
    marks: frozenset[str]
    pins: frozenset[str]
    damaged: set[StepFolder] = field(default_factory=set)
    cut_off: set[StepFolder] = field(default_factory=set)

    def whole(self) -> dict[StepFolder, SavedStep]:
        """Those that count, one a step: a later save of the same step stands for it."""
        return self._one_a_step(f for f in self.folders if f not in self.damaged | self.cut_off)

    def as_if_whole(self) -> dict[StepFolder, SavedStep]:
        """The same, as though the damaged ones were whole."""
        return self._one_a_step(f for f in self.folders if f not in self.cut_off)

    def _one_a_step(self, folders: Iterable[StepFolder]) -> dict[StepFolder, SavedStep]:
        found: dict[int, tuple[StepFolder, SavedStep]] = {}
        created = datetime.now(UTC)
        for folder in folders:
            if folder.step in found:
                continue
            saved = self.known.get(folder)
            if saved is None:  # nobody can tell any more, but it was before the one after it
                saved = SavedStep(folder.step, created, {}, 0, pinned=False)
            created = saved.created
            found[folder.step] = folder, replace(saved, pinned=folder.name in self.pins)
        return dict(found.values())


def plan_removals(storage: Storage, policy: RetentionPolicy) -> list[Removal]:
    """What would go if ``policy`` were applied to a root now, newest first; changes nothing.

    Folders of saves under way stay: of what was not committed, only that of earlier runs goes.
    Give each ``Removal.folder`` to ``remove_step`` to remove it.

    Raises:
        UsageError: the policy raised.
    """
    return Retention(storage, policy, generation=newest_generation(storage)).plan()


def remove_step(storage: Storage, folder: StepFolder) -> None:
    """Remove a step folder; one that is removed by half is no checkpoint any more."""
    storage.delete(f"{folder.name}/{MANIFEST}")
    storage.delete(folder.name)
    storage.delete(f"{QUARANTINE}/{folder.name}")


def discard_step(storage: Storage, folder: StepFolder) -> None:
    """Remove what a save that failed has written; it is no checkpoint in any case."""
    try:
        remove_step(storage, folder)
    except (OSError, TrainkitError) as error:
        log.warning("what is left of %s could not be removed: %s", folder.name, error)


def _saved_step(manifest: Manifest) -> SavedStep:
    return SavedStep(
        step=manifest.step,
        created=_moment(manifest.created),
        metrics=manifest.metrics,
        num_bytes=sum(record.size for record in manifest.files.values()),
        pinned=False,
    )


def _moment(text: str) -> datetime:
    """The moment that a manifest names; now, where it names none, so that it counts as new."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return datetime.now(UTC)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
