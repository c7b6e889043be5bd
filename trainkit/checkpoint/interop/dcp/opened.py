"""One checkpoint that a TrainkitWriter saved: which one is meant, and what is where in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from trainkit.checkpoint.adapters.base import Saved
from trainkit.checkpoint.adapters.values import from_json_bytes
from trainkit.checkpoint.format import catalog
from trainkit.checkpoint.format.layout import StepFolder
from trainkit.checkpoint.format.manifest import Manifest
from trainkit.checkpoint.format.tensors import parse
from trainkit.checkpoint.interop.dcp.identifiers import Identified
from trainkit.checkpoint.interop.dcp.metadata import ENTRY, METADATA_PATH, Piece, decode_metadata
from trainkit.checkpoint.interop.dcp.values import StoredValues
from trainkit.checkpoint.load.ranges import RangeReader
from trainkit.errors import CheckpointDamagedError, EnvironmentFaultError, InputMissingError
from trainkit.storage import Storage, open_storage

__all__ = ["Opened"]


@dataclass(slots=True)
class Opened:
    """A checkpoint that was chosen, and what DCP's metadata says of it."""

    storage: Storage
    folder: StepFolder
    manifest: Manifest
    pieces: Mapping[MetadataIndex, Piece] = field(default_factory=dict)
    items: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, where: Identified) -> "Opened":
        """Find the checkpoint that is meant, one that a ``TrainkitWriter`` saved.

        Raises:
            InputMissingError: there is none; the message says which there are.
            CheckpointDamagedError: its manifest is damaged.
            EnvironmentFaultError: it was saved otherwise.
        """
        opened = cls.any_kind(where)
        if not opened.is_of_dcp:
            held = ", ".join(sorted(opened.manifest.entries)) or "nothing"
            raise EnvironmentFaultError(
                f"{opened.named} was not saved by a TrainkitWriter: it holds {held}. Restore it "
                f"with CheckpointManager, or export it: trainkit.checkpoint.interop.export_dcp."
            )
        return opened

    @classmethod
    def any_kind(cls, where: Identified) -> "Opened":
        """Find the checkpoint that is meant, whoever saved it, and read its manifest.

        Raises:
            InputMissingError: there is none; the message says which there are.
            CheckpointDamagedError: its manifest is damaged.
        """
        storage = open_storage(where.url)
        folder = _choose(storage, where)
        try:
            manifest = catalog.read_own_manifest(storage, folder)
        except CheckpointDamagedError as reason:
            raise CheckpointDamagedError(f"{reason}{_others(storage, folder)}") from None
        return cls(storage, folder, manifest)

    @property
    def is_of_dcp(self) -> bool:
        """Whether a ``TrainkitWriter`` saved it."""
        return ENTRY in self.manifest.entries and self.manifest.entries[ENTRY].kind == ENTRY

    @property
    def named(self) -> str:
        """The folder, for messages."""
        return f"{self.storage.url}/{self.folder.name}"

    def metadata(self) -> Metadata:
        """Read DCP's metadata.

        Raises:
            CheckpointDamagedError: it is not what was saved.
        """
        data = self._whole(METADATA_PATH)
        if data is None:
            raise CheckpointDamagedError(f"{self.named} lacks {METADATA_PATH}")
        return decode_metadata(data)

    def use(self, metadata: Metadata) -> None:
        """Take the metadata that DCP goes by."""
        self.pieces = metadata.storage_data
        self.items = metadata.state_dict_metadata

    def piece(self, item: ReadItem) -> Piece:
        """Where an item lies."""
        piece = self.pieces.get(item.storage_index)
        if piece is None:
            raise CheckpointDamagedError(f"{self.named}: nothing is known of {item.storage_index}")
        return piece

    def chunk_sizes(self, item: ReadItem) -> torch.Size:
        """Sizes of the chunk that an item is read from."""
        index = item.storage_index
        metadata: TensorStorageMetadata = self.items[index.fqn]
        if index.index is not None and index.index < len(metadata.chunks):
            chunk = metadata.chunks[index.index]
            if chunk.offsets == index.offset:
                return chunk.sizes
        return next(chunk.sizes for chunk in metadata.chunks if chunk.offsets == index.offset)

    def values(self, reader: RangeReader, path: str) -> StoredValues:
        """Read a document of values.

        Raises:
            CheckpointDamagedError: it is not what was saved.
        """
        found = {}
        for suffix in (".json", ".safetensors"):
            record = self.manifest.files.get(path + suffix)
            if record is not None:
                found[suffix] = bytearray(reader.read(path + suffix, 0, record.size))
        tensors, json = found.get(".safetensors"), found.get(".json")
        if json is None:
            raise CheckpointDamagedError(f"{self.named} lacks {path}.json")
        saved = Saved({} if tensors is None else parse(memoryview(tensors)), from_json_bytes(json))
        return StoredValues(saved, f"{self.named}/{path}")

    def _whole(self, path: str) -> bytes | None:
        record = self.manifest.files.get(path)
        if record is None:
            return None
        with RangeReader(self.storage, self.folder.name, self.manifest.files, threads=1) as reader:
            return bytes(reader.read(path, 0, record.size))


def _choose(storage: Storage, where: Identified) -> StepFolder:
    """The folder that is meant, newest attempt first; it is committed.

    Raises:
        InputMissingError: there is none; the message says which there are.
    """
    if not storage.names():
        raise InputMissingError(f"{storage.url} is empty, or there is no such folder")
    catalog.refuse_foreign(storage)
    # Whoever names a step wants that one, also if it was set aside before.
    folders = catalog.committed(storage, set_aside=where.step is not None)
    for folder in folders:
        if where.folder in (None, folder) and where.step in (None, folder.step):
            return folder
    wanted = "checkpoint" if where.step is None else f"committed checkpoint of step {where.step}"
    cut_off = [f.name for f in catalog.uncommitted(storage) if where.step in (None, f.step)]
    hint = f"; {cut_off[0]} was never committed" if cut_off else ""
    raise InputMissingError(f"{storage.url} has no {wanted}{hint}{_listed(folders)}")


def _others(storage: Storage, damaged: StepFolder) -> str:
    return _listed([folder for folder in catalog.committed(storage) if folder != damaged])


def _listed(folders: list[StepFolder]) -> str:
    steps = sorted({folder.step for folder in folders})
    return f". Committed steps there: {', '.join(map(str, steps))}" if steps else ""
