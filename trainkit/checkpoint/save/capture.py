"""From a state to the files that this rank is to write of it."""

from collections.abc import Mapping
from typing import Any

from trainkit.checkpoint.adapters.base import Document
from trainkit.checkpoint.adapters.state import capture_rank, capture_shared
from trainkit.checkpoint.format.layout import has_parts
from trainkit.checkpoint.format.manifest import Entry
from trainkit.checkpoint.save.division import divide
from trainkit.checkpoint.save.files import FileImage, Layouts

__all__ = ["Capture"]


class Capture:
    """Takes the same state again and again, and remembers how its files are laid out."""

    def __init__(self, state: Mapping[str, Any], rank: int, world_size: int) -> None:
        self._state = state
        self._rank = rank
        self._world_size = world_size
        self._layouts = Layouts()

    def take(self, *, sketch: bool = False) -> tuple[dict[str, Entry], list[FileImage], str]:
        """The entries, this rank's files, and a checksum of how tensors are divided over ranks.

        The files refer to the state's own tensors, which are as they are when bytes are read. With
        ``sketch`` the sizes of files are about right, and none is to be written.

        Raises:
            UsageError: something in the state cannot be saved; the message names its place.
        """
        entries: dict[str, Entry] = {}
        documents: list[Document] = []
        for name, entry, described in capture_shared(self._state, sketch=sketch):
            entries[name] = entry
            documents += described
        division = divide(documents, self._rank, self._world_size, self._layouts)
        # By itself, so that it is not counted as one that is the same on all ranks.
        sharded = [name for name, entry in entries.items() if has_parts(entry.documents)]
        own = divide([capture_rank(self._state, self._rank, sharded)], 0, 1, self._layouts)
        return entries, division.images + own.images, division.checksum
