"""One entry of a checkpoint as a folder that needs no trainkit: all of it, or nothing."""

import contextlib
import itertools
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from trainkit.checkpoint.adapters.base import Saved
from trainkit.checkpoint.adapters.values import to_json_bytes
from trainkit.checkpoint.admin.chunks import chunk_length, chunk_problem
from trainkit.checkpoint.admin.headers import document_files, file_tensors
from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.checksums import CHUNK_BYTES, FileRecord
from trainkit.checkpoint.format.layout import StepFolder, has_parts
from trainkit.checkpoint.format.manifest import Entry, Manifest
from trainkit.checkpoint.format.tensors import StoredTensor, TensorSource, lay_out
from trainkit.checkpoint.load.reader import StepReader
from trainkit.checkpoint.load.whole import KEPT_CHUNKS, whole_documents
from trainkit.errors import CheckpointDamagedError, InputMissingError, UsageError
from trainkit.storage import Bytes, LocalStorage, Storage, refuse_credentials

__all__ = ["FORMATS", "export"]

FORMATS = ("safetensors", "torch")

FILE_BYTES = 5_000_000_000
"""Tensors that are put together go to files of so many bytes, or of one larger tensor."""


def export(
    storage: Storage,
    folder: StepFolder,
    target: str | os.PathLike[str],
    *,
    entry: str = "model",
    format: str = "safetensors",
) -> list[str]:
    """Write one entry to the local folder ``target``, which appears when all is in it.

    Every byte is checked against its checksum on the way. ``safetensors`` copies the files as
    they are, chunk by chunk; those that an entry is split over get the index that transformers
    reads, and of an entry in its own framework's format the framework's files are copied.
    ``torch`` reads the entry into memory and writes one file for ``torch.load`` with
    ``weights_only=True``. Tensors of which each rank saved a part are put together, for
    ``safetensors`` one at a time, in files of 5 GB.

    Args:
        storage: of the root.
        folder: of a committed checkpoint.
        target: a folder that is not there yet, or is empty.
        entry: name of the entry.
        format: one of ``FORMATS``.

    Returns:
        Names of the files in ``target``.

    Raises:
        InputMissingError: the checkpoint has no such entry; the message names those it has.
        UsageError: ``target`` is no local folder, or has something in it.
        CheckpointDamagedError: bytes are not those that were saved.
        DependencyError: ``torch`` was asked for and is not installed.
    """
    if format not in FORMATS:
        raise UsageError(f"format={format!r}: expected one of {', '.join(FORMATS)}")
    final = _target(target)
    manifest = catalog.read_manifest(storage, folder)
    described = _entry(storage, folder, manifest, entry)
    above = LocalStorage(final.parent)
    above.make_folder()
    temporary = f".{final.name}.{uuid.uuid4().hex}.tmp"
    try:
        above.make_folder(temporary)
        if format == "torch":
            _write_torch(StepReader(storage, folder), described, entry, final.parent / temporary)
        elif has_parts(described.documents):
            _write_whole(StepReader(storage, folder), entry, above, temporary)
        else:
            _write_files(storage, folder, manifest, described, above, temporary)
        names = above.names(temporary)
        _publish(final.parent / temporary, final)
    finally:
        shutil.rmtree(final.parent / temporary, ignore_errors=True)
    return names


def _target(target: str | os.PathLike[str]) -> Path:
    refuse_credentials(target)
    text = os.fspath(target)
    if "://" in text or not text.strip():
        raise UsageError(f"{text!r}: expected a local folder to export to")
    final = Path(os.path.abspath(os.path.expanduser(text)))
    _refuse_used(final)
    return final


def _refuse_used(final: Path) -> None:
    if os.path.lexists(final) and not (final.is_dir() and not os.listdir(final)):
        raise UsageError(f"{final} is there already; expected a new folder, or an empty one")


def _entry(storage: Storage, folder: StepFolder, manifest: Manifest, name: str) -> Entry:
    found = manifest.entries.get(name)
    if found is not None and found.documents:
        return found
    why = "is there" if found is None else "is held by each rank for itself, and cannot be exported"
    names = [n for n, e in manifest.entries.items() if e.documents]
    shown = ", ".join(sorted(names)) or "none"
    no = "no entry" if found is None else "entry"
    raise InputMissingError(
        f"{storage.url}/{folder.name}: {no} {name!r} {why}; entries to export are {shown}"
    )


def _write_files(
    storage: Storage,
    folder: StepFolder,
    manifest: Manifest,
    entry: Entry,
    above: LocalStorage,
    temporary: str,
) -> None:
    found = {document: document_files(manifest, document) for document in entry.documents}
    # Where a framework has files of its own, all is in them: a server of models that finds a
    # second JSON or UBJ file beside a model serves neither.
    if any(where.raw for where in found.values()):
        found = {document: where for document, where in found.items() if where.raw}
    for document, where in found.items():
        base = document.rpartition("/")[2]
        new_names = _names(base, len(where.tensors))
        index: dict[str, str] = {}
        total = 0
        for path, name in zip(where.tensors, new_names, strict=True):
            record = manifest.files[path]
            above.write(f"{temporary}/{name}", _chunks(storage, folder, path, record))
            tensors = file_tensors(storage, folder, path, record)
            index.update(dict.fromkeys(tensors, name))
            total += sum(tensor.num_bytes for tensor in tensors.values())
        if len(new_names) > 1:
            _write_index(above, f"{temporary}/{base}", index, total)
        for other, name in ((where.json, f"{base}.json"), (where.raw, base)):
            if other:
                record = manifest.files[other]
                above.write(f"{temporary}/{name}", _chunks(storage, folder, other, record))


def _write_whole(reader: StepReader, name: str, above: LocalStorage, temporary: str) -> None:
    """Write files of tensors of which each rank saved a part; one tensor at a time is in memory."""
    with reader.rank_documents(keep=KEPT_CHUNKS) as ranks:
        for document in whole_documents(reader.manifest, ranks, name):
            base = document.path.rpartition("/")[2]
            if document.has_json:
                above.write(f"{temporary}/{base}.json", [to_json_bytes(document.json)])
            if document.tensors is None:
                continue
            groups = _grouped(document.tensors)
            names = _names(base, len(groups))
            for file, tensors in zip(names, groups, strict=True):
                head, order, _ = lay_out(tensors, framework="pt")
                parts = itertools.chain([head], (tensors[key].load() for key in order))
                above.write(f"{temporary}/{file}", parts)
            if len(names) > 1:
                index = {key: file for file, of in zip(names, groups, strict=True) for key in of}
                total = sum(tensor.num_bytes for tensor in document.tensors.values())
                _write_index(above, f"{temporary}/{base}", index, total)


def _grouped(tensors: Mapping[str, TensorSource]) -> list[dict[str, TensorSource]]:
    """Tensors by the file that they go to, in the order in which ranks have saved them."""
    groups: list[dict[str, TensorSource]] = [{}]
    room = FILE_BYTES
    for name in lay_out(tensors, framework="pt")[1]:
        size = tensors[name].num_bytes
        if size > room and groups[-1]:
            groups.append({})
            room = FILE_BYTES
        groups[-1][name] = tensors[name]
        room -= size
    return groups


def _write_index(above: LocalStorage, base: str, index: Mapping[str, str], total: int) -> None:
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1)
    above.write(f"{base}.safetensors.index.json", [text.encode()])


def _names(base: str, count: int) -> list[str]:
    """Names of tensor files, as Hugging Face has them."""
    if count == 1:
        return [f"{base}.safetensors"]
    return [f"{base}-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


def _chunks(storage: Storage, folder: StepFolder, path: str, record: FileRecord) -> Iterator[Bytes]:
    buffer = memoryview(bytearray(min(CHUNK_BYTES, record.size)))
    for number in range(len(record.chunks)):
        where = f"{folder.name}/{path}"
        problem = chunk_problem(storage, where, record, number, buffer)
        if problem:
            raise CheckpointDamagedError(f"{storage.url}/{where}{problem}")
        yield buffer[: chunk_length(record, number)]


def _write_torch(reader: StepReader, entry: Entry, name: str, into: Path) -> None:
    from trainkit.checkpoint.admin import torch as torch_files

    if has_parts(entry.documents):
        documents = _put_together(reader, name)
    else:
        documents = {path: reader.document(path) for path in entry.documents}
    raw = [path for path, document in documents.items() if document.raw is not None]
    if raw:
        raise UsageError(
            f"{name} was saved as {raw[0]} in its own framework's format, which cannot become a "
            f"file of torch; export it with --format safetensors, which copies files as they are"
        )
    if entry.kind == "module":
        torch_files.write_module(documents, into / "pytorch_model.bin")
    else:
        torch_files.write_values(documents, into / f"{re.sub('[^A-Za-z0-9_.-]', '_', name)}.pt")


def _put_together(reader: StepReader, name: str) -> dict[str, Saved]:
    """Documents of an entry of which each rank saved a part, in memory."""
    with reader.rank_documents(keep=KEPT_CHUNKS) as ranks:
        found = {}
        for document in whole_documents(reader.manifest, ranks, name):
            tensors = document.tensors or {}
            order = lay_out(tensors, framework="pt")[1]  # as they lie in the files
            stored = {
                key: StoredTensor(
                    tensors[key].dtype, tensors[key].shape, memoryview(tensors[key].load())
                )
                for key in order
            }
            found[document.path] = Saved(stored, document.json if document.has_json else None)
    return found


def _publish(temporary: Path, final: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        _refuse_used(final)  # somebody may have been faster
    os.rename(temporary, final)
    descriptor = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
