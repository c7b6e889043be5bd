"""What one checkpoint holds: entries, documents, tensors. No value of a tensor is read."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any

from trainkit.checkpoint.adapters.values import from_json_bytes
from trainkit.checkpoint.admin.headers import TensorAt, document_files, document_tensors
from trainkit.checkpoint.admin.survey import StepFiles, quarantine_reason, size_problems
from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.layout import (
    GENERATIONS,
    MANIFEST,
    QUARANTINE,
    StepFolder,
    rank_state_path,
    sharded_path,
)
from trainkit.checkpoint.format.manifest import Manifest
from trainkit.checkpoint.format.pins import pinned
from trainkit.checkpoint.format.tensors import ITEM_BYTES
from trainkit.checkpoint.load.files import read_verified
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
    """Of those that were sharded type and shape of the whole, and the file that says so."""


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
    described = {
        sharded_path(path)
        for entry in manifest.entries.values()
        for path in entry.documents
        if sharded_path(path) in entry.documents
    }

    def view(path: str) -> DocumentView:
        files: dict[str, int] = {}
        try:
            where = document_files(manifest, path)
            files = {name: manifest.files[name].size for name in where.names}
            if path in described:
                tensors = _wholes(storage, folder, f"{path}.json", manifest)
            else:
                tensors = document_tensors(storage, folder, manifest, path)
            return DocumentView(path, files, tensors)
        except CheckpointDamagedError as error:
            text = str(error).removeprefix(f"{storage.url}/{folder.name}/")
            if not any(problem.partition(" ")[0] in text for problem in problems):
                problems.append(text)
            return DocumentView(path, files, {})

    with ThreadPoolExecutor(_READERS, thread_name_prefix="trainkit-inspect") as pool:
        return dict(zip(paths, pool.map(view, paths), strict=True))


def _wholes(
    storage: Storage, folder: StepFolder, path: str, manifest: Manifest
) -> dict[str, TensorAt]:
    """Tensors of which each rank saved a part, as what describes them says."""
    where = f"{folder.name}/{path}"
    described = from_json_bytes(read_verified(storage, where, manifest.files[path]))
    try:
        return {
            name: TensorAt(
                value["dtype"],
                tuple(value["shape"]),
                path,
                0,
                ITEM_BYTES[value["dtype"]] * prod(value["shape"]),
            )
            for name, value in described.items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointDamagedError(f"{where} describes no tensors: {error!r}") from None


def _claim(storage: Storage, folder: StepFolder) -> dict[str, Any]:
    try:
        claim = json.loads(storage.read(f"{GENERATIONS}/{folder.generation:010d}"))
        return {"host": str(claim["host"]), "pid": int(claim["pid"])}
    except (InputMissingError, ValueError, KeyError, TypeError):
        return {}
