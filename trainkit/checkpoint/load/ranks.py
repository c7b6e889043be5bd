"""What each rank has saved of its own: values at once, tensors when they are asked for."""

import functools
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from trainkit.checkpoint.adapters.base import Saved
from trainkit.checkpoint.adapters.values import decode, from_json_bytes
from trainkit.checkpoint.format.boxes import Box
from trainkit.checkpoint.format.layout import rank_state_path
from trainkit.checkpoint.format.tensors import (
    StoredTensor,
    TensorPlace,
    TensorSource,
    header_length,
    places,
)
from trainkit.checkpoint.load.ranges import RangeReader
from trainkit.errors import CheckpointDamagedError

__all__ = ["Part", "RankDocuments", "Unread"]

_READERS = 8
"""Documents of ranks that are read at the same time: an object store answers late."""


@dataclass(slots=True)
class Unread(TensorSource):
    """A tensor of a checkpoint; numpy's arrays are decoded at once and ask for ``data``."""

    @property
    def data(self) -> memoryview:
        """Its bytes, in memory that is the caller's alone."""
        return memoryview(self.load())


@dataclass(frozen=True, slots=True)
class Part:
    """What one rank has saved of a tensor: the box of it, and where its bytes are."""

    box: Box
    file: str
    key: str
    """Its name in the file."""


Parts = Mapping[str, Mapping[str, Part]]
"""Of one rank: by entry and name."""


class RankDocuments:
    """What ranks have saved of their own in one checkpoint, each read when it is needed.

    Values are read with the document of a rank. Of its tensors, which may be most of the
    checkpoint, only those bytes are read that somebody asks for.
    """

    def __init__(
        self, ranges: RangeReader, whole: Callable[[str], memoryview | None], where: str
    ) -> None:
        """Begin; nothing is read yet.

        Args:
            ranges: reads below the step folder.
            whole: reads and verifies a whole file, from several threads; None if it is not there.
            where: the step folder, for messages.
        """
        self._ranges = ranges
        self._whole = whole
        self._where = where
        self._headers: dict[str, Mapping[str, TensorPlace]] = {}
        self._json: dict[int, Mapping[str, Any]] = {}
        self._parts: dict[int, Parts] = {}
        self._of_all: dict[str, dict[str, list[Part]]] = {}

    def json(self, rank: int) -> Mapping[str, Any]:
        """The values that a rank has saved of its own, parts described among them.

        Raises:
            CheckpointDamagedError: they are not what was saved, or not there.
        """
        if rank not in self._json:
            path = f"{rank_state_path(rank)}.json"
            data = self._whole(path)
            if data is None:
                raise CheckpointDamagedError(f"{self._where} lacks {path}")
            value = from_json_bytes(data)
            if not isinstance(value, dict):
                raise CheckpointDamagedError(f"{self._where}/{path} is no document of a rank")
            self._json[rank] = value
        return self._json[rank]

    def own(self, rank: int) -> Saved:
        """The document of a rank without its parts; its tensors are read by ``value``."""
        json = {key: value for key, value in self.json(rank).items() if key != "parts"}
        return Saved(_WhenAsked(lambda key: self._stored(_file(rank), key)), json)

    def parts(self, rank: int) -> Parts:
        """Parts that a rank has saved, unread.

        Raises:
            CheckpointDamagedError: what describes them makes no sense.
        """
        if rank not in self._parts:
            try:
                described = decode(self.json(rank).get("parts", {}), _WhenAsked(_named))
                self._parts[rank] = {
                    entry: {key: self._part(rank, part) for key, part in parts.items()}
                    for entry, parts in described.items()
                }
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise CheckpointDamagedError(
                    f"{self._where}: parts of rank {rank} that make no sense: {error!r}"
                ) from None
        return self._parts[rank]

    def all_parts(self, entry: str, num_ranks: int) -> dict[str, list[Part]]:
        """Parts of one entry that all ranks have saved, by name.

        Raises:
            CheckpointDamagedError: documents are not what was saved.
        """
        if entry in self._of_all:
            return self._of_all[entry]
        left = [rank for rank in range(num_ranks) if rank not in self._json]
        if len(left) > 1:
            with ThreadPoolExecutor(_READERS, thread_name_prefix="trainkit-read") as pool:
                for _ in pool.map(self.json, left):
                    pass
        found = self._of_all[entry] = {}
        for rank in range(num_ranks):
            for key, part in self.parts(rank).get(entry, {}).items():
                found.setdefault(key, []).append(part)
        return found

    def values(self, path: str) -> Any:
        """The JSON of any document of the step; None where it has none."""
        data = self._whole(f"{path}.json")
        return None if data is None else from_json_bytes(data)

    def tensors(self, files: Iterable[str]) -> dict[str, Unread]:
        """All tensors in files of the step, each read when it is loaded."""
        return {
            key: Unread(place.dtype, place.shape, functools.partial(self._copy, file, place))
            for file in files
            for key, place in self._places(file).items()
        }

    def place(self, file: str, key: str) -> TensorPlace:
        """Where a tensor lies, counted from the first byte of its file.

        Raises:
            CheckpointDamagedError: it is not there, or the head of the file makes no sense.
        """
        place = self._places(file).get(key)
        if place is None:
            raise CheckpointDamagedError(f"{self._where}/{file} lacks the tensor {key}")
        return place

    def read(self, file: str, begin: int, end: int) -> memoryview:
        """Verified bytes of a file; they stay as they are until the next call."""
        return self._ranges.read(file, begin, end)

    def _places(self, file: str) -> Mapping[str, TensorPlace]:
        if file not in self._headers:
            size = self._ranges.size(file)
            start = 8 + header_length(bytes(self.read(file, 0, min(8, size))), size)
            found = places(bytes(self.read(file, 8, start)), size - start)
            self._headers[file] = {
                name: place._replace(begin=start + place.begin, end=start + place.end)
                for name, place in found.items()
            }
        return self._headers[file]

    def _copy(self, file: str, place: TensorPlace) -> bytearray:
        return bytearray(self.read(file, place.begin, place.end))

    def _stored(self, file: str, key: str) -> StoredTensor:
        place = self.place(file, key)
        return StoredTensor(place.dtype, place.shape, memoryview(self._copy(file, place)))

    def _part(self, rank: int, part: Mapping[str, Any]) -> Part:
        file, key = _file(rank), part["tensor"].origin
        return Part((tuple(part["offsets"]), tuple(part["shape"])), file, key)


def _file(rank: int) -> str:
    return f"{rank_state_path(rank)}.safetensors"


def _named(key: str) -> Any:
    """In place of a tensor that is not read: its name."""
    return TensorSource("U8", (), bytes, key)


class _WhenAsked(dict[str, Any]):
    """Tensors by name, each made when it is looked up."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: str) -> Any:
        return self._make(key)
