"""How one entry of the state becomes documents, and is given back from them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from trainkit.checkpoint.adapters.values import Encoder, decode
from trainkit.checkpoint.format.tensors import StoredTensor, TensorSource

__all__ = ["Apply", "Document", "Saved", "ShardedAdapter", "StateAdapter"]

Apply = Callable[[], None]
"""Gives a checked value back to its object."""

_NOTHING = object()


@dataclass(frozen=True, slots=True)
class Document:
    """Values and tensors to be written under one path without suffix.

    Without ``json`` there is no JSON file; without ``tensors`` (None) no safetensors file.
    """

    path: str
    tensors: Mapping[str, TensorSource] | None
    json: Any = _NOTHING

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


@dataclass(frozen=True, slots=True)
class Saved:
    """A document that was read and verified."""

    tensors: Mapping[str, StoredTensor]
    json: Any = None
    parts: Mapping[str, Any] = field(default_factory=dict)
    """Of tensors that were sharded: by name, those of all ranks."""

    def value(self) -> Any:
        """The value that ``Document.of`` encoded."""
        return decode(self.json, self.tensors)


class StateAdapter(Protocol):
    """Saves and restores entries of one kind.

    It sees the whole state, since an optimizer is keyed by the names that a module gives to
    its parameters. Nothing is given back before all entries have been prepared, so that a
    state that does not fit leaves every object as it was.
    """

    kind: ClassVar[str]

    def capture(self, name: str, state: Mapping[str, Any]) -> list[Document]:
        """Describe the entry ``name`` of ``state``.

        Raises:
            UsageError: something in it cannot be saved; the message names its place.
        """
        ...

    def prepare(self, name: str, state: Mapping[str, Any], saved: Mapping[str, Saved]) -> Apply:
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
