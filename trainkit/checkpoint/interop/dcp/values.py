"""What DCP hands over as bytes: values that are no tensors, as JSON and without pickle.

DCP pickles each such value, and its load planner unpickles whatever it is given. Here values
are stored as JSON, and the load planner gets a pickle made from that JSON, never one from a
file. What JSON cannot hold is an error, or with ``allow_pickle`` stored as DCP pickled it.
"""

import io
from collections.abc import Iterable
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem
from typing_extensions import TypeIs

from trainkit.checkpoint.adapters.base import Document, Saved
from trainkit.checkpoint.adapters.values import Encoder
from trainkit.errors import CheckpointDamagedError, UsageError

__all__ = ["StoredValues", "as_stream", "capture_values"]

_OPAQUE = object()


def capture_values(
    path: str, planner: SavePlanner, items: Iterable[WriteItem], *, allow_pickle: bool
) -> tuple[Document, frozenset[str]]:
    """One document for all values of a rank, and the names of those that it holds as pickles.

    Raises:
        UsageError: a value cannot be held without pickle, and ``allow_pickle`` is false; the
            message names its place.
    """
    plain: dict[str, Any] = {}
    pickles: dict[str, Any] = {}
    for item in items:
        name = item.index.fqn
        value = _value_of(planner, item)
        try:
            if value is _OPAQUE:
                raise UsageError(
                    f"{name} was turned into bytes by {type(planner).__name__} itself."
                )
            Encoder(name).encode(value)
            plain[name] = value
        except UsageError as reason:
            if not allow_pickle:
                raise UsageError(
                    f"{reason} Or let it be pickled, as DCP does: TrainkitWriter(…, "
                    f"allow_pickle=True), and the same for TrainkitReader."
                ) from None
            data = _bytes_of(planner, item)
            pickles[name] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    document = Document.of(path, "state_dict", {"values": plain, "pickles": pickles})
    return document, frozenset(pickles)


class StoredValues:
    """The values that one rank wrote."""

    def __init__(self, saved: Saved, path: str) -> None:
        """Decode a document of ``capture_values``.

        Raises:
            CheckpointDamagedError: it is none.
        """
        value = saved.value()
        try:
            self._plain, self._pickles = dict(value["values"]), dict(value["pickles"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointDamagedError(f"{path} holds no values of DCP: {error!r}") from None
        self._path = path

    def stream(self, name: str, *, pickled: bool) -> io.BytesIO:
        """What DCP's load planner expects for ``name``.

        Args:
            name: of the value.
            pickled: whether a pickle from the file is wanted; otherwise none is given out.

        Raises:
            CheckpointDamagedError: there is no such value.
        """
        if not pickled:
            return as_stream(self.value(name))
        if name not in self._pickles:
            raise CheckpointDamagedError(f"{self._path} lacks the pickle of {name}")
        return io.BytesIO(self._pickles[name].numpy().tobytes())

    def value(self, name: str) -> Any:
        """A value that was no pickle.

        Raises:
            CheckpointDamagedError: there is no such value.
        """
        if name not in self._plain:
            raise CheckpointDamagedError(f"{self._path} lacks the value {name}")
        return self._plain[name]


def as_stream(value: Any) -> io.BytesIO:
    """``value`` as DCP's load planner reads it."""
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return stream


def _value_of(planner: SavePlanner, item: WriteItem) -> Any:
    """The value behind an item; ``_OPAQUE`` where the planner makes bytes in its own way."""
    if _serializes_as_dcp(planner):
        return planner.lookup_object(item.index)
    try:
        return torch.load(io.BytesIO(_bytes_of(planner, item)), weights_only=True)
    except Exception:
        return _OPAQUE


def _serializes_as_dcp(planner: SavePlanner) -> TypeIs[DefaultSavePlanner]:
    return (
        isinstance(planner, DefaultSavePlanner)
        and type(planner).resolve_data is DefaultSavePlanner.resolve_data
        and type(planner).transform_object is DefaultSavePlanner.transform_object
    )


def _bytes_of(planner: SavePlanner, item: WriteItem) -> bytes:
    data = planner.resolve_data(item)
    if not isinstance(data, io.BytesIO):
        raise UsageError(f"{item.index.fqn}: the planner gave a {type(data).__name__}, not bytes")
    return data.getvalue()
