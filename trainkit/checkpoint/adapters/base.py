"""How one entry of the state becomes documents, and is given back from them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from trainkit.checkpoint.adapters.values import Encoder, decode
from trainkit.checkpoint.format.boxes import Box
from trainkit.checkpoint.format.tensors import ReadTensor, TensorSource
from trainkit.errors import CheckpointDamagedError
from trainkit.storage import Bytes

__all__ = [
    "Apply",
    "Document",
    "FileTensor",
    "LateAdapter",
    "Parts",
    "RawFile",
    "Reading",
    "Saved",
    "ShardedAdapter",
    "SketchingAdapter",
    "StateAdapter",
    "TensorFile",
    "Wanted",
]

Apply = Callable[[], None]
"""Gives a checked value back to its object."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Reads large files straight into its object, a torch module, and so gives it all back.

    Bytes are verified on their way, so that it may raise ``CheckpointDamagedError`` when some of
    the object has been overwritten.
    """

    read: Callable[[], None]


_NOTHING = object()


@dataclass(frozen=True, slots=True)
class RawFile:
    """A file in a framework's own format, of which not one byte is ours.

    ``read(begin, end)`` returns these bytes of it, and may be called again.
    """

    size: int
    read: Callable[[int, int], Bytes]

    @classmethod
    def of_bytes(cls, data: Bytes) -> "RawFile":
        """A file that is in memory."""
        view = memoryview(data)
        return cls(len(view), lambda begin, end: view[begin:end])


@dataclass(frozen=True, slots=True)
class Document:
    """Values and tensors to be written under one path without suffix, or a file as it is.

    Without ``json`` there is no JSON file; without ``tensors`` (None) no safetensors file. With
    ``raw`` there is neither, and ``path`` is the file's own, with its suffix. With nothing at
    all it only refers to what another entry writes.
    """

    path: str
    tensors: Mapping[str, TensorSource] | None
    json: Any = _NOTHING
    raw: RawFile | None = None

    @property
    def has_json(self) -> bool:
        """Whether there are values beside the tensors."""
        return self.json is not _NOTHING

    @classmethod
    def of(cls, path: str, name: str, value: Any) -> "Document":
        """Encode any value.

        Raises:
            UsageError: something in it cannot be saved; the message begins with ``name``.
        """
        encoder = Encoder(name)
        json = encoder.encode(value)
        return cls(path, encoder.tensors or None, json)


class Wanted(NamedTuple):
    """A box of a tensor that was sharded, and memory for all its bytes, contiguous."""

    key: str
    dtype: str
    """As the format calls it."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    box: Box
    into: memoryview


class Parts(Protocol):
    """What all ranks together have saved of an entry's sharded tensors, unread."""

    def fill(self, wanted: Iterable[Wanted]) -> None:
        """Read boxes of tensors, and of the files no more than these need.

        Raises:
            CheckpointDamagedError: bytes are not those that were saved, or there are too few.
        """
        ...


class TensorFile(Protocol):
    """A large file of tensors, unread but for its header."""

    def fill(self, into: Mapping[str, memoryview]) -> None:
        """Read each of its tensors into memory of the same size, verified in the same pass.

        Raises:
            CheckpointDamagedError: bytes are not those that were saved, and some of them are in
                ``into`` by now.
        """
        ...

    def data(self, key: str) -> memoryview:
        """The bytes of one tensor; the whole file is read and verified for the first one.

        Raises:
            CheckpointDamagedError: bytes are not those that were saved.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class FileTensor:
    """A tensor that ``file`` can read straight to where it belongs."""

    dtype: str
    shape: tuple[int, ...]
    key: str
    """Its name in the file."""
    file: TensorFile

    @property
    def data(self) -> memoryview:
        """Its bytes, in memory that can be written to."""
        return self.file.data(self.key)


@dataclass(frozen=True, slots=True)
class Saved:
    """A document that was read and verified; of a large file, its header."""

    tensors: Mapping[str, ReadTensor]
    json: Any = None
    parts: Parts | None = None
    """Where the document describes tensors that were sharded."""
    raw: Callable[[], memoryview] | None = None
    """Reads and verifies a file that was saved as it is; in memory that is the caller's alone."""

    def value(self) -> Any:
        """The value that ``Document.of`` encoded."""
        return decode(self.json, self.tensors)

    def file(self) -> memoryview:
        """The bytes of a file that was saved as it is.

        Raises:
            CheckpointDamagedError: they are not those that were saved, or it is no such file.
        """
        if self.raw is None:
            raise CheckpointDamagedError("values or tensors where a file was saved")
        return self.raw()


class StateAdapter(Protocol):
    """Saves and restores entries of one kind.

    It sees the whole state, since an optimizer is keyed by the names that a module gives to
    its parameters. Nothing is given back before all entries have been prepared, so that a
    state that does not fit leaves every object as it was; and nothing before what reads has
    read, so that damage leaves all but torch modules as they were. One adapter serves all
    entries of its kind in one save or one restore, so that it can keep several of them together.
    """

    kind: ClassVar[str]

    def capture(self, name: str, state: Mapping[str, Any]) -> list[Document]:
        """Describe the entry ``name`` of ``state``.

        Raises:
            UsageError: something in it cannot be saved; the message names its place.
        """
        ...

    def prepare(
        self, name: str, state: Mapping[str, Any], saved: Mapping[str, Saved]
    ) -> Apply | Reading:
        """Check that ``saved``, by the documents' paths, fits the entry ``name``.

        Raises:
            EnvironmentFaultError: it does not fit; the message names the first difference.
        """
        ...


@runtime_checkable
class ShardedAdapter(Protocol):
    """A ``StateAdapter`` of entries of which each rank may have a part."""

    def own_parts(self, name: str, state: Mapping[str, Any]) -> dict[str, Any]:
        """Parts of sharded tensors that this rank saves: by name, ``offsets`` and ``tensor``."""
        ...


@runtime_checkable
class SketchingAdapter(Protocol):
    """A ``StateAdapter`` for which it is dear to describe an entry."""

    def sketch(self, name: str, state: Mapping[str, Any]) -> list[Document]:
        """Documents of about the size of those that ``capture`` returns; never written."""
        ...


@runtime_checkable
class LateAdapter(Protocol):
    """A ``StateAdapter`` of entries that cannot be saved before they were trained."""

    def has_begun(self, value: Any) -> bool:
        """Whether there is something to save; a look after which ``value`` may be unusable."""
        ...
