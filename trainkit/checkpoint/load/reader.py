"""Reading one checkpoint: every byte that is used is verified first."""

from collections.abc import Mapping
from typing import Any

from trainkit.checkpoint.adapters.base import Saved
from trainkit.checkpoint.adapters.state import Restoration
from trainkit.checkpoint.adapters.values import from_json_bytes
from trainkit.checkpoint.format.catalog import read_manifest
from trainkit.checkpoint.format.checksums import CHUNK_BYTES, FileRecord, digest
from trainkit.checkpoint.format.layout import StepFolder, rank_state_path, tensor_files
from trainkit.checkpoint.format.manifest import Manifest
from trainkit.checkpoint.format.tensors import StoredTensor, parse
from trainkit.errors import CheckpointDamagedError, InputMissingError
from trainkit.storage import Storage

__all__ = ["StepReader", "read_verified"]


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
        """Read and check all that ``state`` needs; nothing in it is changed yet.

        Raises:
            CheckpointDamagedError: bytes are not those that were saved; the message names the
                file.
            EnvironmentFaultError: the state does not fit; the message names the difference.
        """
        restoration = Restoration(state, self.manifest.entries)
        for name in state:
            documents = self.manifest.entries[name].documents
            if documents:
                restoration.prepare(name, {path: self._document(path) for path in documents})
        if rank < self.manifest.world_size:
            own = self._document(rank_state_path(rank))
            restoration.prepare_rank(own, same_world=world_size == self.manifest.world_size)
        return restoration

    def _document(self, path: str) -> Saved:
        json, pieces = self._file(f"{path}.json"), tensor_files(path, self.manifest.files)
        if json is None and not pieces:
            raise CheckpointDamagedError(f"{self._storage.url}/{self._folder.name} lacks {path}")
        tensors: dict[str, StoredTensor] = {}
        for piece in pieces:
            data = self._file(piece)
            if data is not None:
                tensors.update(parse(memoryview(data)))
        return Saved(tensors, from_json_bytes(json) if json is not None else None)

    def _file(self, path: str) -> bytearray | None:
        record = self.manifest.files.get(path)
        if record is None:
            return None
        return read_verified(self._storage, f"{self._folder.name}/{path}", record)


def read_verified(storage: Storage, path: str, record: FileRecord) -> bytearray:
    """Read a file whose bytes match its checksums.

    Raises:
        CheckpointDamagedError: they do not; the message names the file and the place.
    """
    data = bytearray(record.size)
    view = memoryview(data)
    for number, checksum in enumerate(record.chunks):
        begin = number * CHUNK_BYTES
        chunk = view[begin : begin + CHUNK_BYTES]
        try:
            count = storage.read_into(path, chunk, begin)
        except InputMissingError as error:
            raise CheckpointDamagedError(f"{storage.url}/{path} is gone: {error}") from None
        if count != len(chunk) or digest(chunk) != checksum:
            raise CheckpointDamagedError(
                f"{storage.url}/{path}: bytes {begin} to {begin + len(chunk)} do not match their "
                f"checksum"
            )
    return data
