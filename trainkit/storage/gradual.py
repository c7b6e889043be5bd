"""Writing bytes that are still on their way into memory."""

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias, runtime_checkable

__all__ = ["GradualStorage", "Ready"]

Ready: TypeAlias = Callable[[str, int, int], None]
"""Called with a path and a range of its bytes before these are looked at; several threads do.

It may wait for them, and make use of them itself. What it raises ends the writing.
"""


@runtime_checkable
class GradualStorage(Protocol):
    """A ``Storage`` that writes the first bytes of an object before it has looked at the last."""

    def write_gradually(self, files: Mapping[str, memoryview], ready: Ready) -> None:
        """``Storage.write_all`` of objects whose bytes come little by little."""
        ...
