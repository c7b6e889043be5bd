"""Reading one checkpoint: every byte that is used is verified.

What is in memory is verified before anything is changed. Large files of tensors, of which a restore
shall need no second copy in memory, are read when they are given back, straight into the state.
"""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from trainkit.checkpoint.adapters.base import Saved
from trainkit.checkpoint.adapters.state import Restoration
from trainkit.checkpoint.adapters.values import from_json_bytes
from trainkit.checkpoint.format.catalog import read_manifest
from trainkit.checkpoint.format.checksums import FileRecord
from trainkit.checkpoint.format.layout import (
    StepFolder,
    has_parts,
    rank_state_path,
    sharded_path,
    tensor_files,
)
from trainkit.checkpoint.format.manifest import Manifest
from trainkit.checkpoint.format.tensors import ReadTensor, parse
from trainkit.checkpoint.load.files import LARGE, THREADS, read_verified
from trainkit.checkpoint.load.parts import EntryParts
from trainkit.checkpoint.load.ranges import RangeReader
from trainkit.checkpoint.load.ranks import RankDocuments
from trainkit.checkpoint.load.unread import UnreadFile
from trainkit.errors import CheckpointDamagedError
from trainkit.storage import Storage

__all__ = ["StepReader"]


class StepReader:
    """Reads below one step folder."""

    def __init__(self, storage: Storage, folder: StepFolder) -> None:
        """Read the manifest.

        Raises:
            CheckpointDamagedError: the manifest is damaged, or files are missing or cut off.
            EnvironmentFaultError: a format that this version cannot read.
        """
        self._storage = storage
        self._folder = folder
        self.manifest: Manifest = read_manifest(storage, folder)

    def prepare(self, state: Mapping[str, Any], rank: int, world_size: int) -> Restoration:
        """Read and check what ``state`` needs; nothing in it is changed yet.

        Of sharded tensors that is what this rank has of them, and no more. Of large files it is
        the header: their bytes are verified on their way into the state.

        Raises:
            CheckpointDamagedError: bytes are not those that were saved; the message names the
                file.
            EnvironmentFaultError: the state does not fit; the message names the difference.
        """
        restoration = Restoration(state, self.manifest.entries)
        with self.rank_documents() as ranks:
            self._prepare(restoration, state, ranks, rank)
            if rank < self.manifest.world_size:
                own = ranks.own(rank) if self._has_parts else self.document(rank_state_path(rank))
                restoration.prepare_rank(own, same_world=world_size == self.manifest.world_size)
        return restoration

    def prepare_shared(self, state: Mapping[str, Any], rank: int) -> Restoration:
        """The same of entries that are there and not one rank's own, and of nothing else.

        Raises:
            CheckpointDamagedError: bytes are not those that were saved.
            EnvironmentFaultError: the state does not fit.
        """
        restoration = Restoration(state, {name: self.manifest.entries[name] for name in state})
        with self.rank_documents() as ranks:
            self._prepare(restoration, state, ranks, rank)
        return restoration

    @contextlib.contextmanager
    def rank_documents(self, *, keep: int = 4) -> Iterator[RankDocuments]:
        """What ranks have saved of their own, to be read inside the block.

        Args:
            keep: of how many files a chunk of 8 MiB stays in memory, for who reads here and there.
        """
        name, files = self._folder.name, self.manifest.files
        with RangeReader(self._storage, name, files, threads=THREADS, keep=keep) as ranges:
            yield RankDocuments(ranges, self._file, f"{self._storage.url}/{name}")

    def document(self, path: str) -> Saved:
        """Read and check the files of one document, which is a path without suffix.

        Large files of tensors are read when the result is asked for these, and so is a file that
        was saved as it is, whose document is its own path: several entries may share one.

        Raises:
            CheckpointDamagedError: bytes are not those that were saved, or files are missing.
        """
        if path in self.manifest.files:
            return Saved({}, raw=functools.partial(self._verified, path, self.manifest.files[path]))
        json, pieces = self._file(f"{path}.json"), tensor_files(path, self.manifest.files)
        if json is None and not pieces:
            raise CheckpointDamagedError(f"{self._storage.url}/{self._folder.name} lacks {path}")
        tensors: dict[str, ReadTensor] = {}
        for piece in pieces:
            tensors.update(self._tensors(piece))
        return Saved(tensors, from_json_bytes(json) if json is not None else None)

    def _prepare(
        self, restoration: Restoration, names: Iterable[str], ranks: RankDocuments, rank: int
    ) -> None:
        for name in names:
            documents = self.manifest.entries[name].documents
            if documents:
                saved = {path: self.document(path) for path in documents}
                for path in self._sharded(name):
                    parts = EntryParts(ranks, name, self.manifest.world_size, near=rank)
                    saved[path] = replace(saved[path], parts=parts)
                restoration.prepare(name, saved)

    @property
    def _has_parts(self) -> bool:
        return any(has_parts(entry.documents) for entry in self.manifest.entries.values())

    def _sharded(self, name: str) -> list[str]:
        """Documents of an entry that describe sharded tensors."""
        documents = self.manifest.entries[name].documents
        there = set(documents)
        return [path for path in map(sharded_path, documents) if path in there]

    def _tensors(self, path: str) -> Mapping[str, ReadTensor]:
        record = self.manifest.files[path]
        if record.size >= LARGE:
            file = UnreadFile(self._storage, f"{self._folder.name}/{path}", record)
            if file.is_dense:
                return file.tensors
        return parse(self._verified(path, record))

    def _file(self, path: str) -> memoryview | None:
        record = self.manifest.files.get(path)
        return None if record is None else self._verified(path, record)

    def _verified(self, path: str, record: FileRecord) -> memoryview:
        return read_verified(self._storage, f"{self._folder.name}/{path}", record)
