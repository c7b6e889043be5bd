"""What each rank has saved of its own, parts of sharded tensors above all; no more of it is read
than is asked for."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from trainkit.checkpoint.adapters.base import Saved, Wanted
from trainkit.checkpoint.adapters.values import decode, from_json_bytes
from trainkit.checkpoint.format.boxes import Box, box_bytes, copy_box, overlap, split
from trainkit.checkpoint.format.layout import rank_state_path
from trainkit.checkpoint.format.tensors import (
    ITEM_BYTES,
    StoredTensor,
    TensorPlace,
    TensorSource,
    header_length,
    places,
)
from trainkit.checkpoint.load.ranges import RUN_BYTES, RangeReader, runs
from trainkit.errors import CheckpointDamagedError

__all__ = ["EntryParts", "Part", "RankDocuments"]

_READERS = 8
"""Documents of ranks that are read at the same time: an object store answers late."""


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

    def place(self, file: str, key: str) -> TensorPlace:
        """Where a tensor lies, counted from the first byte of its file.

        Raises:
            CheckpointDamagedError: it is not there, or the head of the file makes no sense.
        """
        if file not in self._headers:
            self._headers[file] = self._header(file)
        if key not in self._headers[file]:
            raise CheckpointDamagedError(f"{self._where}/{file} lacks the tensor {key}")
        return self._headers[file][key]

    def read(self, file: str, begin: int, end: int) -> memoryview:
        """Verified bytes of a file; they stay as they are until the next call."""
        return self._ranges.read(file, begin, end)

    def _header(self, file: str) -> Mapping[str, TensorPlace]:
        size = self._ranges.size(file)
        start = 8 + header_length(bytes(self.read(file, 0, min(8, size))), size)
        found = places(bytes(self.read(file, 8, start)), size - start)
        return {
            name: place._replace(begin=start + place.begin, end=start + place.end)
            for name, place in found.items()
        }

    def _stored(self, file: str, key: str) -> StoredTensor:
        place = self.place(file, key)
        data = memoryview(bytearray(self.read(file, place.begin, place.end)))
        return StoredTensor(place.dtype, place.shape, data)

    def _part(self, rank: int, part: Mapping[str, Any]) -> Part:
        file, key = _file(rank), part["tensor"].origin
        # Checkpoints of early versions tell the shape of a part in its file alone.
        shape = part["shape"] if "shape" in part else self.place(file, key).shape
        return Part((tuple(part["offsets"]), tuple(shape)), file, key)


class _Copy(NamedTuple):
    """What goes from a part to what is wanted: a box, counted in the whole tensor."""

    part: Part
    wanted: Wanted
    box: Box


@dataclass(frozen=True, slots=True)
class EntryParts:
    """The parts of one entry's sharded tensors. See ``adapters.base.Parts``.

    A rank that has what it saved needs only the document of the same number, ``near``: others
    are read where that does not suffice.
    """

    documents: RankDocuments
    entry: str
    num_ranks: int
    near: int | None = None

    def fill(self, wanted: Iterable[Wanted]) -> None:
        """Read boxes of tensors, verified."""
        copies: list[_Copy] = []
        left = [*wanted]
        if self.near is not None and self.near < self.num_ranks:
            own = self.documents.parts(self.near).get(self.entry, {})
            rest = []
            for one in left:
                found = self._copies(one, [own[one.key]] if one.key in own else [])
                if _num_elements(found) == prod(one.box[1]):
                    copies += found
                else:
                    rest.append(one)
            left = rest
        if left:
            parts = self.documents.all_parts(self.entry, self.num_ranks)
            for one in left:
                copies += self._checked(one, parts.get(one.key, []))
        self._copy(copies)

    def _checked(self, wanted: Wanted, parts: Sequence[Part]) -> list[_Copy]:
        found = self._copies(wanted, parts)
        count, size = _num_elements(found), prod(wanted.box[1])
        if count != size:
            raise CheckpointDamagedError(
                f"{self.entry}.{wanted.key}: ranks have saved {count} of the {size} elements that "
                f"are needed of it"
            )
        return found

    def _copies(self, wanted: Wanted, parts: Iterable[Part]) -> list[_Copy]:
        found = []
        try:
            for part in parts:
                ends = (offset + length for offset, length in zip(*part.box, strict=True))
                if any(end > size for end, size in zip(ends, wanted.shape, strict=True)):
                    raise ValueError(f"{part.box} in a tensor of shape {wanted.shape}")
                box = overlap(part.box, wanted.box)
                if box is not None:
                    found.append(_Copy(part, wanted, box))
        except (TypeError, ValueError) as error:
            raise CheckpointDamagedError(
                f"{self.entry}.{wanted.key}: parts that do not fit: {error}"
            ) from None
        return found

    def _copy(self, copies: Iterable[_Copy]) -> None:
        """Read file after file in the order of bytes, so that no chunk is read twice."""
        of_files: dict[str, list[_Copy]] = {}
        for copy in copies:
            of_files.setdefault(copy.part.file, []).append(copy)
        for file, of_file in sorted(of_files.items()):
            ranges = [piece for copy in of_file for piece in self._pieces(copy)]
            for run in runs(sorted(ranges, key=lambda entry: entry[:2])):
                start = run[0][0]
                data = self.documents.read(file, start, max(end for _, end, _ in run))
                for begin, end, copy in run:
                    _fill(data[begin - start : end - start], copy)

    def _pieces(self, copy: _Copy) -> Iterator[tuple[int, int, _Copy]]:
        """What to read of the file for it, in pieces that memory is held for at once."""
        part, wanted = copy.part, copy.wanted
        place, item = self.documents.place(part.file, part.key), ITEM_BYTES[wanted.dtype]
        if (place.dtype, place.shape) != (wanted.dtype, part.box[1]):
            raise CheckpointDamagedError(
                f"{self.entry}.{wanted.key}: {part.file} holds {place.dtype} of shape "
                f"{place.shape} where {wanted.dtype} of shape {part.box[1]} was saved"
            )
        for box in split(part.box[1], _within(copy.box, part.box), item, RUN_BYTES):
            begin, end = box_bytes(part.box[1], *box, item)
            offsets = tuple(map(sum, zip(part.box[0], box[0], strict=True)))
            yield place.begin + begin, place.begin + end, copy._replace(box=(offsets, box[1]))


def _fill(data: memoryview, copy: _Copy) -> None:
    part, wanted = copy.part, copy.wanted
    copy_box(
        data,
        part.box[1],
        _within(copy.box, part.box)[0],
        wanted.into,
        wanted.box[1],
        _within(copy.box, wanted.box)[0],
        copy.box[1],
        ITEM_BYTES[wanted.dtype],
    )


def _num_elements(copies: Iterable[_Copy]) -> int:
    return sum(prod(copy.box[1]) for copy in copies)


def _within(box: Box, outer: Box) -> Box:
    """The same box, counted from the first element of ``outer``."""
    offsets = tuple(begin - first for begin, first in zip(box[0], outer[0], strict=True))
    return offsets, box[1]


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
