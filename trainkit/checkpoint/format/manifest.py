"""What a checkpoint says about itself: the part of a rank, and the manifest that commits."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainkit.checkpoint.format.checksums import FileRecord, digest
from trainkit.checkpoint.format.layout import is_safe_path
from trainkit.errors import CheckpointDamagedError, EnvironmentFaultError

__all__ = ["FORMAT", "Entry", "Manifest", "Part", "TornManifestError"]

FORMAT = "tkc/1"

_NO_HASH = b"0" * 32
_TRAILER = re.compile(rb'"self_xxh3_128": "([0-9a-f]{32})"\n\}\n\Z')


class TornManifestError(CheckpointDamagedError):
    """A manifest or part that ends too early: its write was cut off, so nobody was told of
    success."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the state: what kind it was, and the documents that hold it.

    A document is a path without suffix: ``.json`` holds its values, ``.safetensors`` its
    tensors, and either may be absent.
    """

    kind: str
    documents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank wrote: all of its files are durable once its part is there."""

    rank: int
    files: Mapping[str, FileRecord]
    entries: Mapping[str, Entry] = field(default_factory=dict)
    division: str = ""
    """Checksum of how tensors were divided over ranks: the same in all parts of a step."""

    def to_bytes(self) -> bytes:
        """The part as it lies on disk, its last line a hash over all of its own bytes."""
        return _sealed(
            {
                "format": FORMAT,
                "rank": self.rank,
                "division": self.division,
                "files": _files_json(self.files),
                "entries": _entries_json(self.entries),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Part":
        """Read a part back.

        Raises:
            TornManifestError: it ends before its hash.
            CheckpointDamagedError: its hash does not match, or it makes no sense.
        """
        document = _unsealed(data, "the list of a rank's files")
        try:
            return cls(
                int(document["rank"]),
                _files_from(document["files"]),
                _entries_from(document["entries"]),
                str(document["division"]),
            )
        except _MALFORMED as error:
            raise CheckpointDamagedError(
                f"the list of a rank's files makes no sense: {error}"
            ) from None


@dataclass(frozen=True, slots=True)
class Manifest:
    """The commit of a checkpoint. A folder without it is no checkpoint."""

    step: int
    generation: int
    attempt: int
    world_size: int
    created: str
    written_by: str
    files: Mapping[str, FileRecord]
    entries: Mapping[str, Entry]
    metrics: Mapping[str, float] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The manifest as it lies on disk, its last line a hash over all of its own bytes."""
        return _sealed(
            {
                "format": FORMAT,
                "step": self.step,
                "generation": self.generation,
                "attempt": self.attempt,
                "world_size": self.world_size,
                "created": self.created,
                "written_by": self.written_by,
                # JSON has no nan; a run that diverged must be saved all the same.
                "metrics": {k: v if math.isfinite(v) else repr(v) for k, v in self.metrics.items()},
                "entries": _entries_json(self.entries),
                "files": _files_json(self.files),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """Read a manifest back.

        Raises:
            TornManifestError: it ends before its hash.
            CheckpointDamagedError: its hash does not match, or it makes no sense.
            EnvironmentFaultError: it is whole, and of a format that this version cannot read.
        """
        document = _unsealed(data, "the manifest")
        try:
            if document["format"] != FORMAT:
                raise EnvironmentFaultError(
                    f"the checkpoint has format {document['format']!r} and this version of "
                    f"trainkit reads {FORMAT!r}. Use the version that wrote it, or a newer one."
                )
            return cls._from_json(document)
        except _MALFORMED as error:
            raise CheckpointDamagedError(f"the manifest makes no sense: {error}") from None

    @classmethod
    def _from_json(cls, document: Mapping[str, Any]) -> "Manifest":
        return cls(
            step=int(document["step"]),
            generation=int(document["generation"]),
            attempt=int(document["attempt"]),
            world_size=int(document["world_size"]),
            created=str(document["created"]),
            written_by=str(document["written_by"]),
            files=_files_from(document["files"]),
            entries=_entries_from(document["entries"]),
            metrics={str(name): float(v) for name, v in document["metrics"].items()},
        )


def _sealed(document: Mapping[str, Any]) -> bytes:
    """JSON whose last line is a hash over all of its own bytes."""
    data = _lines({**document, "self_xxh3_128": _NO_HASH.decode()})
    own = _TRAILER.search(data)
    if own is None:
        raise AssertionError("a sealed document ends with its hash")  # a bug of ours, not a fault
    return data[: own.start(1)] + digest(data).encode() + data[own.end(1) :]


def _lines(document: Mapping[str, Any]) -> bytes:
    """JSON with a line for each field and one for each file.

    ``indent`` would do without json's C code: half of a commit's time with thousands of ranks.
    """
    lines = []
    for name, value in document.items():
        if name == "files" and value:
            files = (f"  {json.dumps(path)}: {json.dumps(item)}" for path, item in value.items())
            text = "{\n" + ",\n".join(files) + "\n }"
        else:
            text = json.dumps(value)
        lines.append(f' "{name}": {text}')
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _unsealed(data: bytes, what: str) -> Any:
    """Read such JSON back.

    Raises:
        TornManifestError: it ends before its hash.
        CheckpointDamagedError: its hash does not match, or it is no JSON.
    """
    own = _TRAILER.search(data)
    if own is None:
        raise TornManifestError(f"{what} is cut off: no hash of its own at its end")
    if digest(data[: own.start(1)] + _NO_HASH + data[own.end(1) :]) != own[1].decode():
        raise CheckpointDamagedError(f"{what} does not match its own hash")
    try:
        return json.loads(data)
    except _MALFORMED as error:
        raise CheckpointDamagedError(f"{what} makes no sense: {error}") from None


_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


def _files_json(files: Mapping[str, FileRecord]) -> dict[str, Any]:
    return {path: files[path].to_json() for path in sorted(files)}


def _files_from(value: Mapping[str, Any]) -> dict[str, FileRecord]:
    return {_safe(path): FileRecord.from_json(record) for path, record in value.items()}


def _entries_json(entries: Mapping[str, Entry]) -> dict[str, Any]:
    return {n: {"kind": e.kind, "documents": list(e.documents)} for n, e in entries.items()}


def _entries_from(value: Mapping[str, Any]) -> dict[str, Entry]:
    return {
        str(name): Entry(str(entry["kind"]), _documents_from(entry["documents"]))
        for name, entry in value.items()
    }


def _documents_from(value: Any) -> tuple[str, ...]:
    if type(value) is not list:  # each letter of a text would pass for a path
        raise ValueError(f"documents that are a {type(value).__name__}")
    return tuple(_safe(path) for path in value)


def _safe(path: str) -> str:
    if not is_safe_path(path):
        raise ValueError(f"{path!r} is no path inside a checkpoint")
    return path
