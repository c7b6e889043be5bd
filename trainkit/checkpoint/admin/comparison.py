"""What differs between two checkpoints: entry by entry, tensor by tensor, value by value."""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from trainkit.checkpoint.adapters.base import Document
from trainkit.checkpoint.adapters.values import from_json_bytes
from trainkit.checkpoint.admin.headers import TensorAt, document_files, document_tensors
from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.checksums import CHUNK_BYTES, FileRecord
from trainkit.checkpoint.format.layout import RANKS, StepFolder, has_parts, rank_state_path
from trainkit.checkpoint.format.manifest import Manifest
from trainkit.checkpoint.format.tensors import TensorSource
from trainkit.checkpoint.load.files import read_verified
from trainkit.checkpoint.load.reader import StepReader
from trainkit.checkpoint.load.whole import KEPT_CHUNKS, whole_documents
from trainkit.errors import CheckpointDamagedError, InputMissingError
from trainkit.storage import Storage

__all__ = ["Change", "Side", "compare"]

_READERS = 4
_TENSOR_KINDS = ("array", "scalar", "tensor")
_LONGEST_LIST = 16
"""Lists of more plain values than these are compared as one value: states of generators."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two checkpoints."""

    storage: Storage
    folder: StepFolder
    manifest: Manifest

    @classmethod
    def open(cls, storage: Storage, folder: StepFolder) -> "Side":
        """Read the manifest.

        Raises:
            CheckpointDamagedError: it is damaged, or files are missing or cut off.
            EnvironmentFaultError: a format that this version cannot read.
        """
        return cls(storage, folder, catalog.read_manifest(storage, folder))


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. ``what`` is ``entry``, ``tensor``, ``value`` or, of one that its framework
    wrote, ``file``; ``how`` is ``added``, ``removed``, ``kind``, ``dtype``, ``shape`` or
    ``values``."""

    entry: str
    document: str
    name: str
    what: str
    how: str
    before: str = ""
    after: str = ""


def compare(before: Side, after: Side, only: Iterable[str] = ()) -> Iterator[Change]:
    """Find what differs, in the order of entries; nothing at all means the same state.

    Values are compared bit by bit. Where checksums tell that a chunk is the same on both sides
    it is not read; the rest is read in pieces of 8 MiB. Tensors of which each rank saved a part
    are read whole, one after the other, so that the number of ranks makes no difference. Ranks'
    own states are entries named ``rank 0`` and so on.

    Args:
        before: the older side.
        after: the newer side.
        only: names of entries to compare; all by default.

    Raises:
        InputMissingError: neither side has an entry that was asked for.
        CheckpointDamagedError: a file is gone, or its head or its JSON makes no sense.
    """
    ours, theirs = _entries(before), _entries(after)
    names = list(dict.fromkeys([*ours, *theirs]))
    unknown = [name for name in only if name not in names]
    if unknown:
        raise InputMissingError(
            f"no entry {unknown[0]!r} in {before.folder.name} or {after.folder.name}; they have "
            f"{', '.join(names)}"
        )
    for name in only or names:
        if name not in ours or name not in theirs:
            yield Change(name, "", "", "entry", "added" if name in theirs else "removed")
            continue
        (kind, documents), (other_kind, other_documents) = ours[name], theirs[name]
        if kind != other_kind:
            yield Change(name, "", "", "entry", "kind", kind, other_kind)
        if kind == other_kind and (has_parts(documents) or has_parts(other_documents)):
            yield from _compare_wholes(name, before, after)
            continue
        for path in dict.fromkeys([*documents, *other_documents]):
            left = before if path in documents else None
            right = after if path in other_documents else None
            yield from _compare_document(name, path, left, right)


def _entries(side: Side) -> dict[str, tuple[str, tuple[str, ...]]]:
    entries = {n: (e.kind, e.documents) for n, e in side.manifest.entries.items()}
    for rank in range(side.manifest.world_size):
        entries[f"rank {rank}"] = ("rank", (rank_state_path(rank),))
    return entries


def _compare_document(
    entry: str, path: str, before: Side | None, after: Side | None
) -> Iterator[Change]:
    yield from _compare_file(entry, path, _raw(before, path), _raw(after, path))
    old, new = _tensors(before, path), _tensors(after, path)
    values, other_values = _json(before, path), _json(after, path)
    if path.startswith(f"{RANKS}/"):  # parts are compared with the entry that they are of
        values, old = _without_parts(values, old)
        other_values, new = _without_parts(other_values, new)
    pairs: list[tuple[str, TensorAt, TensorAt]] = []
    for name in dict.fromkeys([*old, *new]):
        one, other = old.get(name), new.get(name)
        if one is None or other is None:
            how = "added" if one is None else "removed"
            yield Change(entry, path, name, "tensor", how, _described(one), _described(other))
        elif (one.dtype, one.shape) != (other.dtype, other.shape):
            how = "shape" if one.shape != other.shape else "dtype"
            yield Change(entry, path, name, "tensor", how, _described(one), _described(other))
        else:
            pairs.append((name, one, other))
    if before is not None and after is not None:
        yield from _compare_values(entry, path, before, after, pairs)
    yield from _compare_json(entry, path, values, other_values)


def _compare_wholes(entry: str, before: Side, after: Side) -> Iterator[Change]:
    """Compare an entry that was saved in parts, on one side at least: tensor by tensor, whole."""
    with _wholes(before, entry) as old, _wholes(after, entry) as new:
        for path in dict.fromkeys([*old, *new]):
            ours, theirs = _tensors_of(old, path), _tensors_of(new, path)
            for name in dict.fromkeys([*ours, *theirs]):
                how = _difference(ours.get(name), theirs.get(name))
                if how:
                    shown = _described(ours.get(name)), _described(theirs.get(name))
                    yield Change(entry, path, name, "tensor", how, *shown)
            yield from _compare_json(entry, path, _json_of(old, path), _json_of(new, path))


@contextlib.contextmanager
def _wholes(side: Side, entry: str) -> Iterator[Mapping[str, Document]]:
    reader = StepReader(side.storage, side.folder)
    with reader.rank_documents(keep=KEPT_CHUNKS) as ranks:
        documents = whole_documents(reader.manifest, ranks, entry)
        yield {document.path: document for document in documents}


def _difference(one: TensorSource | None, other: TensorSource | None) -> str:
    if one is None or other is None:
        return "added" if one is None else "removed"
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return "shape" if one.shape != other.shape else "dtype"
    return "" if one.load() == other.load() else "values"


def _tensors_of(side: Mapping[str, Document], path: str) -> Mapping[str, TensorSource]:
    return (side[path].tensors if path in side else None) or {}


def _json_of(side: Mapping[str, Document], path: str) -> Any:
    return side[path].json if path in side and side[path].has_json else _Nothing()


def _compare_file(
    entry: str, path: str, old: FileRecord | None, new: FileRecord | None
) -> Iterator[Change]:
    """Files that a framework wrote differ or not: only it knows what is in them."""
    if old != new:
        how = "values" if old and new else "added" if new else "removed"
        name = path.rpartition("/")[2]
        yield Change(entry, path, name, "file", how, _sized(old), _sized(new))


def _compare_values(
    entry: str,
    path: str,
    before: Side,
    after: Side,
    pairs: list[tuple[str, TensorAt, TensorAt]],
) -> Iterator[Change]:
    def differs(pair: tuple[str, TensorAt, TensorAt]) -> bool:
        return any(
            _read(before, one) != _read(after, other)
            for one, other in _unlike(before, after, pair[1], pair[2])
        )

    with ThreadPoolExecutor(_READERS, thread_name_prefix="trainkit-diff") as pool:
        for (name, one, other), changed in zip(pairs, pool.map(differs, pairs), strict=True):
            if changed:
                shown = _described(one), _described(other)
                yield Change(entry, path, name, "tensor", "values", *shown)


def _unlike(
    before: Side, after: Side, one: TensorAt, other: TensorAt
) -> Iterator[tuple[tuple[str, int, int], tuple[str, int, int]]]:
    """Pieces of two tensors of one size that checksums do not show to be the same."""
    ours, theirs = before.manifest.files[one.file], after.manifest.files[other.file]
    begin, shift = one.begin, other.begin - one.begin
    while begin < one.end:
        number = begin // CHUNK_BYTES
        end = min(one.end, (number + 1) * CHUNK_BYTES)
        same = shift == 0 and ours.chunks[number : number + 1] == theirs.chunks[number : number + 1]
        if not same:
            yield (one.file, begin, end), (other.file, begin + shift, end + shift)
        begin = end


def _read(side: Side, piece: tuple[str, int, int]) -> bytearray:
    path, begin, end = piece
    buffer = bytearray(end - begin)
    where = f"{side.folder.name}/{path}"
    if side.storage.read_into(where, memoryview(buffer), begin) != len(buffer):
        raise CheckpointDamagedError(f"{side.storage.url}/{where} ends before byte {end}")
    return buffer


def _compare_json(entry: str, path: str, old: Any, new: Any) -> Iterator[Change]:
    before, after = dict(_leaves(old, "")), dict(_leaves(new, ""))
    for name in dict.fromkeys([*before, *after]):
        if name not in after:
            yield Change(entry, path, name, "value", "removed", before=_shown(before[name]))
        elif name not in before:
            yield Change(entry, path, name, "value", "added", after=_shown(after[name]))
        elif not _equal(before[name], after[name]):
            shown = _shown(before[name]), _shown(after[name])
            yield Change(entry, path, name, "value", "values", *shown)


def _without_parts(
    values: Any, tensors: Mapping[str, TensorAt]
) -> tuple[Any, Mapping[str, TensorAt]]:
    if not isinstance(values, dict) or "parts" not in values:
        return values, tensors
    left = {key: value for key, value in values.items() if key != "parts"}
    return left, {k: tensor for k, tensor in tensors.items() if not k.startswith("parts.")}


class _Nothing:
    """No JSON file at all."""


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """The values in a JSON document, each with its place in it."""
    if isinstance(value, _Nothing):
        return
    if isinstance(value, dict) and value and value.get("$kind") not in _TENSOR_KINDS:
        if value.get("$kind") == "tuple" and isinstance(value.get("items"), list):
            yield from _leaves(value["items"], place)
            return
        for key, item in value.items():
            yield from _leaves(item, f"{place}.{key}" if place else key)
        return
    if isinstance(value, list) and value and not _is_long(value):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{place}[{number}]")
        return
    yield place, value


def _is_long(values: list[Any]) -> bool:
    return len(values) > _LONGEST_LIST and not any(isinstance(v, (dict, list)) for v in values)


def _equal(one: Any, other: Any) -> bool:
    """Equal, and of the same type: 1, 1.0 and true are three values."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _described(tensor: TensorAt | TensorSource | None) -> str:
    return "" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"


def _sized(record: FileRecord | None) -> str:
    return "" if record is None else f"{record.size} bytes"


def _raw(side: Side | None, path: str) -> FileRecord | None:
    return None if side is None else side.manifest.files.get(path)


def _tensors(side: Side | None, path: str) -> Mapping[str, TensorAt]:
    if side is None:
        return {}
    return document_tensors(side.storage, side.folder, side.manifest, path)


def _json(side: Side | None, path: str) -> Any:
    if side is None:
        return _Nothing()
    name = document_files(side.manifest, path).json
    if name is None:
        return _Nothing()
    record = side.manifest.files[name]
    return from_json_bytes(read_verified(side.storage, f"{side.folder.name}/{name}", record))
