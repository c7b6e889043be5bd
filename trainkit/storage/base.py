"""What trainkit asks of a place that keeps files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from trainkit.errors import DataError

__all__ = ["Bytes", "Likeness", "ObjectInfo", "Storage", "Upload", "parts_of"]

Bytes: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing says of an object: its size in bytes, and when it was written.

    ``modified`` is in seconds since 1970 by the storage's clock; None where it keeps no times.
    """

    size: int
    modified: float | None


@dataclass(frozen=True, slots=True)
class Likeness:
    """An older object that has some bytes of a new one, at the same places.

    ``ranges`` are pairs of the first byte and the one after the last, ascending and apart.
    """

    path: str
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Upload:
    """An object that somebody began to send in parts, and that is not there."""

    path: str
    identifier: str
    """The store's name for this upload; a path may have several."""
    size: int
    """Bytes of the parts that have arrived."""
    modified: float | None
    """When it was begun or its last part arrived: seconds since 1970 by the storage's clock."""


class Storage(Protocol):
    """Named objects under one root; what checkpoints need, and no general file system.

    Objects are written once and never changed. Only ``create`` is atomic, so a group of
    objects becomes valid at one moment when the object that lists them is created last.
    There is no rename, because several stores have none, or one that copies.

    Paths are relative to the root, parted by ``/``; a path that would leave the root raises
    ``DataError``. Refusals of the operating system raise ``NoPermissionError``; what is not
    there raises ``InputMissingError``; other I/O errors stay ``OSError`` and name the path.
    """

    url: str
    """The root, in full: for messages."""

    reopenable: bool
    """Whether another process that opens ``url`` sees the same objects."""

    def create(self, path: str, data: Bytes) -> None:
        """Make the object ``path`` appear with ``data``, durably and all at once.

        Of several callers with different data exactly one succeeds; one that comes again with
        the same data may be told that it did. The folder must be there.

        Raises:
            FileExistsError: the object is there already.
            InputMissingError: the folder is not there, where folders are more than names.
        """
        ...

    def write(self, path: str, parts: Iterable[Bytes]) -> None:
        """Write a new object from ``parts``; durable on return, possibly torn after a crash.

        Raises:
            FileExistsError: the object is there already.
        """
        ...

    def write_all(
        self, files: Mapping[str, Bytes], alike: Mapping[str, Likeness] | None = None
    ) -> None:
        """Write new objects, several at a time; all are durable on return.

        ``alike`` says of some of them which older objects have parts of their bytes: a store
        that can copies those, and no byte is sent twice. No object depends on another one.

        After an error none of them is there, as far as that can be said after an error; what
        lies in their folders beside them is not touched. Bytes that begin on a page boundary
        go to a disk fastest.

        Raises:
            FileExistsError: one of the objects is there already.
        """
        ...

    def read(self, path: str) -> bytes:
        """All bytes of an object."""
        ...

    def read_into(self, path: str, buffer: memoryview, offset: int = 0) -> int:
        """Fill ``buffer`` from byte ``offset`` on; fewer bytes than asked only at the end."""
        ...

    def names(self, folder: str = "") -> list[str]:
        """Names in a folder, sorted; none where there is no such folder."""
        ...

    def tree(self, folder: str = "") -> dict[str, ObjectInfo]:
        """All objects below a folder at any depth, by path from there; none where it is not.

        One listing, in pages, and no request an object: this is the way to look at many. A
        folder with nothing in it, where folders are more than names, is an object of no bytes
        whose path ends in ``/``.
        """
        ...

    def size(self, path: str) -> int | None:
        """Size of an object in bytes; None when there is no such object."""
        ...

    def make_folder(self, path: str = "") -> None:
        """Make a folder and those above it, durably; nothing where folders are only names."""
        ...

    def delete(self, path: str) -> None:
        """Remove an object or a folder with all that is in it; nothing if it is not there."""
        ...

    def uploads(self) -> list[Upload]:
        """Uploads in parts below the root that have not ended: under way, or cut off.

        None where the storage has no such thing, or does not tell.
        """
        ...

    def abort_upload(self, upload: Upload) -> bool:
        """Give an upload and its parts up; False if it has ended in the meantime."""
        ...


def parts_of(path: str, root: str) -> list[str]:
    """The names that ``path`` is made of; none for the root itself.

    Raises:
        DataError: it would leave ``root``.
    """
    parts = path.split("/") if path else []
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise DataError(f"{path!r} is no path below {root}")
    return parts
