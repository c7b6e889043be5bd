"""``trainkit checkpoint inspect``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from trainkit.checkpoint.admin.inspection import DocumentView, EntryView, Inspection, inspect
from trainkit.checkpoint.admin.locating import find_step, open_root
from trainkit.cli.checkpoints import arguments, shown
from trainkit.errors import ExitCode
from trainkit.storage import Storage

__all__ = ["main"]

_RANKS_SHOWN = 4


def main(argv: Sequence[str]) -> int:
    """Show what one checkpoint holds.

    Raises:
        InputMissingError: there is no such checkpoint.
        CheckpointDamagedError: its manifest is damaged.
        EnvironmentFaultError: it has a format that this version cannot read.
    """
    parser = arguments.parser(
        "inspect",
        "Show what one checkpoint holds: entries, documents, tensors. Reads the heads of files, "
        "no data.",
        "0; 65 if a manifest or the size of a file is wrong; 66 if there is no such checkpoint; "
        "77 if access is refused; 2 for wrong usage.",
    )
    parser.add_argument(
        "--step",
        type=arguments.step,
        help="step to show (default: the one that URL names, or else the newest that is whole)",
    )
    options = parser.parse_args(argv)
    storage, named = open_root(options.url)
    found = inspect(storage, find_step(storage, options.step, named))
    if options.json:
        shown.print_json(_as_json(storage, found))
    else:
        for line in _lines(storage, found):
            print(line)
    return ExitCode.DATA_INVALID if found.problems else ExitCode.DONE


def _lines(storage: Storage, found: Inspection) -> Iterator[str]:
    manifest, writer = found.manifest, found.writer
    by = f"{manifest.written_by}, on {writer['host']}, process {writer['pid']}" if writer else ""
    facts = {
        "checkpoint": f"{storage.url}/{found.folder.name}",
        "step": str(manifest.step),
        "state": _state(found),
        "committed": manifest.created,
        "written by": by or manifest.written_by,
        "ranks": str(manifest.world_size),
        "size": f"{shown.size(found.size)} in {len(manifest.files) + 1} files",
        "metrics": shown.metrics(manifest.metrics),
    }
    for name, fact in facts.items():
        yield f"{name:<11} {fact}"
    for problem in found.problems:
        yield f"{'damaged':<11} {problem}"
    yield ""
    entries = [*found.entries, *found.ranks[:_RANKS_SHOWN]]
    yield from shown.table(("ENTRY", "KIND", "TENSORS", "SIZE", "FILES"), map(_row, entries))
    if len(found.ranks) > _RANKS_SHOWN:
        yield f"… and {len(found.ranks) - _RANKS_SHOWN} more ranks"
    tensors = [row for entry in entries for row in _tensor_rows(entry)]
    if tensors:
        yield ""
        yield from shown.table(("TENSOR", "DTYPE", "SHAPE", "SIZE"), tensors)


def _state(found: Inspection) -> str:
    state = "damaged" if found.problems else "committed"
    if found.quarantine:
        state = f"quarantined: {found.quarantine}"
    return f"{state}, pinned" if found.pinned else state


def _row(entry: EntryView) -> tuple[str, ...]:
    files = {name: size for document in entry.documents for name, size in document.files.items()}
    tensors = sum(len(document.tensors) for document in entry.documents)
    total = shown.size(sum(files.values()))
    return (entry.name, entry.kind, str(tensors), total, " ".join(files) or "in those of each rank")


def _tensor_rows(entry: EntryView) -> Iterator[tuple[str, ...]]:
    for document in entry.documents:
        for name, tensor in document.tensors.items():
            shape = "×".join(map(str, tensor.shape)) or "scalar"
            size = shown.size(tensor.num_bytes)
            yield f"{document.path}: {name}", tensor.dtype, shape, size


def _as_json(storage: Storage, found: Inspection) -> dict[str, Any]:
    manifest = found.manifest
    return {
        "url": f"{storage.url}/{found.folder.name}",
        "folder": found.folder.name,
        "step": manifest.step,
        "generation": manifest.generation,
        "attempt": manifest.attempt,
        "world_size": manifest.world_size,
        "created": manifest.created,
        "written_by": manifest.written_by,
        "writer": dict(found.writer) or None,
        "metrics": shown.metrics_json(manifest.metrics),
        "size": found.size,
        "files": {path: record.size for path, record in sorted(manifest.files.items())},
        "pinned": found.pinned,
        "quarantine": found.quarantine or None,
        "problems": list(found.problems),
        "entries": {entry.name: _entry_json(entry) for entry in found.entries},
        "ranks": [_entry_json(entry)["documents"] for entry in found.ranks],
    }


def _entry_json(entry: EntryView) -> dict[str, Any]:
    return {"kind": entry.kind, "documents": [_document_json(d) for d in entry.documents]}


def _document_json(document: DocumentView) -> dict[str, Any]:
    tensors = {
        name: {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "size": tensor.num_bytes,
            "file": tensor.file,
        }
        for name, tensor in document.tensors.items()
    }
    return {"path": document.path, "files": dict(document.files), "tensors": tensors}
