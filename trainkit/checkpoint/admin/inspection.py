"""What one checkpoint holds: entries, documents, tensors. No value of a tensor is read."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from trainkit.checkpoint.admin.headers import TensorAt, document_files, document_tensors
from trainkit.checkpoint.admin.survey import StepFiles, quarantine_reason, size_problems
from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.layout import (
    GENERATIONS,
    MANIFEST,
    QUARANTINE,
    StepFolder,
    rank_state_path,
)
from trainkit.checkpoint.format.manifest import Manifest
from trainkit.checkpoint.format.pins import pinned
from trainkit.errors import CheckpointDamagedError, InputMissingError
from trainkit.storage import Storage

__all__ = ["DocumentView", "EntryView", "Inspection", "inspect"]

_READERS = 8


@dataclass(frozen=True, slots=True)
class DocumentView:
    """One document: values in a JSON file, tensors in one or several files beside it; or a file
    as its framework wrote it."""

    path: str
    files: Mapping[str, int]
    """Sizes in bytes, as the manifest lists them."""
    tensors: Mapping[str, TensorAt]


@dataclass(frozen=True, slots=True)
class EntryView:
    """One entry of the state that was saved."""

    name: str
    kind: str
    documents: tuple[DocumentView, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """One checkpoint, as far as manifests and heads of files tell."""

    folder: StepFolder
    manifest: Manifest
    entries: tuple[EntryView, ...]
    ranks: tuple[EntryView, ...]
    """What each rank has of its own: random generators and ``PerRank`` entries."""
    writer: Mapping[str, Any]
    """Host and process that claimed the generation; empty where the claim has gone."""
    size: int
    pinned: bool
    quarantine: str
    """Why it was set aside, or nothing."""
    problems: tuple[str, ...]
    """Files that are missing, have another size or make no sense."""


def inspect(storage: Storage, folder: StepFolder) -> Inspection:
    """Describe a committed checkpoint. What is damaged in it is named, and left out.

    Raises:
        CheckpointDamagedError: the manifest itself is damaged.
        EnvironmentFaultError: a format that this version cannot read.
    """
    manifest = catalog.read_own_manifest(storage, folder)
    files = StepFiles(folder, storage.tree(folder.name))
    problems = list(size_problems(files, manifest))
    documents = _documents(storage, folder, manifest, problems)
    entries = tuple(
        EntryView(name, entry.kind, tuple(documents[path] for path in entry.documents))
        for name, entry in manifest.entries.items()
    )
    ranks = tuple(
        EntryView(f"rank {rank}", "rank", (documents[rank_state_path(rank)],))
        for rank in range(manifest.world_size)
    )
    aside = storage.size(f"{QUARANTINE}/{folder.name}") is not None
    return Inspection(
        folder,
        manifest,
        entries,
        ranks,
        writer=_claim(storage, folder),
        size=sum(r.size for r in manifest.files.values())
        + (files.files[MANIFEST].size if files.has_manifest else 0),
        pinned=folder.name in pinned(storage),
        quarantine=quarantine_reason(storage, folder) if aside else "",
        problems=tuple(dict.fromkeys(problems)),
    )


def _documents(
    storage: Storage, folder: StepFolder, manifest: Manifest, problems: list[str]
) -> dict[str, DocumentView]:
    paths = [path for entry in manifest.entries.values() for path in entry.documents]
    paths += [rank_state_path(rank) for rank in range(manifest.world_size)]
    paths = list(dict.fromkeys(paths))  # several entries may lie in the same files

    def view(path: str) -> DocumentView:
        files: dict[str, int] = {}
        try:
            where = document_files(manifest, path)
            files = {name: manifest.files[name].size for name in where.names}
            return DocumentView(path, files, document_tensors(storage, folder, manifest, path))
        except CheckpointDamagedError as error:
            text = str(error).removeprefix(f"{storage.url}/{folder.name}/")
            if not any(problem.partition(" ")[0] in text for problem in problems):
                problems.append(text)
            return DocumentView(path, files, {})

    with ThreadPoolExecutor(_READERS, thread_name_prefix="trainkit-inspect") as pool:
        return dict(zip(paths, pool.map(view, paths), strict=True))


def _claim(storage: Storage, folder: StepFolder) -> dict[str, Any]:
    try:
        claim = json.loads(storage.read(f"{GENERATIONS}/{folder.generation:010d}"))
        return {"host": str(claim["host"]), "pid": int(claim["pid"])}
    except (InputMissingError, ValueError, KeyError, TypeError):
        return {}
