"""Parts of sharded tensors, of which no more is read than is asked for."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from trainkit.checkpoint.adapters.base import Wanted
from trainkit.checkpoint.format.boxes import Box, box_bytes, copy_box, overlap, split
from trainkit.checkpoint.format.tensors import ITEM_BYTES
from trainkit.checkpoint.load.ranges import RUN_BYTES, runs
from trainkit.checkpoint.load.ranks import Part, RankDocuments
from trainkit.errors import CheckpointDamagedError

__all__ = ["EntryParts"]


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
