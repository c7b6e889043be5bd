"""One attempt to save one step: every rank writes its part, rank 0 commits."""

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainkit.checkpoint.adapters.base import Document
from trainkit.checkpoint.adapters.state import capture_rank, capture_shared
from trainkit.checkpoint.adapters.values import to_json_bytes
from trainkit.checkpoint.format.checksums import ChunkHasher, FileRecord, digest
from trainkit.checkpoint.format.layout import MANIFEST, StepFolder, part_path
from trainkit.checkpoint.format.manifest import Entry, Manifest, Part
from trainkit.checkpoint.format.tensors import serialize
from trainkit.checkpoint.save.generation import refuse_overtaken
from trainkit.errors import CheckpointDamagedError
from trainkit.storage import Bytes, Storage
from trainkit.waiting import Deadline, wait_until

__all__ = ["StepWriter"]


class StepWriter:
    """Writes below one step folder. Nothing counts before ``commit`` has returned."""

    def __init__(self, storage: Storage, folder: StepFolder) -> None:
        self._storage = storage
        self._folder = folder
        self._files: dict[str, FileRecord] = {}

    def write_part(self, state: Mapping[str, Any], rank: int) -> str:
        """Write this rank's files, and last the list of them; rank 0 writes what is shared.

        Returns:
            The checksum of the list, for rank 0.

        Raises:
            UsageError: something in the state cannot be saved.
            OSError: the storage failed.
        """
        entries: dict[str, Entry] = {}
        if rank == 0:
            for name, entry, documents in capture_shared(state):
                entries[name] = entry
                for document in documents:
                    self._write_document(document)
        self._write_document(capture_rank(state, rank))
        data = Part(rank, self._files, entries).to_bytes()
        self._storage.create(f"{self._folder.name}/{part_path(rank)}", data)
        return digest(data)

    def commit(
        self,
        checksums: Sequence[str],
        *,
        written_by: str,
        metrics: Mapping[str, float],
        visible_within: float,
    ) -> None:
        """Write the manifest, once the part of every rank is seen; rank 0 does.

        Args:
            checksums: what ``write_part`` returned, by rank.
            written_by: name and version of this software.
            metrics: to be kept with the step.
            visible_within: seconds that a network file system may need to show a part.

        Raises:
            CheckpointDamagedError: a part is not what its rank wrote.
            DeadlineError: a part is not to be seen; the message names the rank.
            EnvironmentFaultError: another run has taken over the root.
        """
        files: dict[str, FileRecord] = {}
        entries: dict[str, Entry] = {}
        deadline = Deadline(visible_within)
        for rank, checksum in enumerate(checksums):
            data = self._await_part(rank, deadline)
            if digest(data) != checksum:
                raise CheckpointDamagedError(f"{part_path(rank)} is not what rank {rank} wrote")
            part = Part.from_bytes(data)
            files.update(part.files)
            files[part_path(rank)] = _record(data)
            entries.update(part.entries)
        refuse_overtaken(self._storage, self._folder.generation)
        manifest = Manifest(
            step=self._folder.step,
            generation=self._folder.generation,
            attempt=self._folder.attempt,
            world_size=len(checksums),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            written_by=written_by,
            files=files,
            entries=entries,
            metrics=metrics,
        )
        self._storage.create(f"{self._folder.name}/{MANIFEST}", manifest.to_bytes())

    def _await_part(self, rank: int, deadline: Deadline) -> bytes:
        path = f"{self._folder.name}/{part_path(rank)}"
        wait_until(
            lambda: self._storage.size(path) is not None,
            what=f"the part of rank {rank} in {self._storage.url}/{path}",
            deadline=deadline,
        )
        return self._storage.read(path)

    def _write_document(self, document: Document) -> None:
        if document.has_json:
            self._write(f"{document.path}.json", [to_json_bytes(document.json)])
        if document.tensors is not None:
            parts = serialize(document.tensors, framework="pt")
            self._write(f"{document.path}.safetensors", parts)

    def _write(self, path: str, parts: Iterable[Bytes]) -> None:
        hasher = ChunkHasher()
        self._storage.write(f"{self._folder.name}/{path}", hasher.passing(parts))
        self._files[path] = hasher.record


def _record(data: bytes) -> FileRecord:
    hasher = ChunkHasher()
    hasher.update(data)
    return hasher.record
