"""Reading one object into many places: straight into the memory of tensors."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias, runtime_checkable

from trainkit.storage.base import Storage

__all__ = ["Scatter", "ScatteringStorage", "scatter_from"]

Scatter: TypeAlias = Callable[[Sequence[memoryview], int], Iterator[int]]
"""Fills buffers, one after the other, with an object's bytes from an offset on.

It yields how many of them are full, once for each piece that was read, so that they can be looked
at while they are in the processor's cache. Where the object ends early it stops. Several threads
may call it at the same time.
"""


@runtime_checkable
class ScatteringStorage(Protocol):
    """A ``Storage`` that can fill several buffers by one call of the system."""

    def scatter_from(self, path: str) -> AbstractContextManager[Scatter]:
        """Open an object, for as long as the block lasts."""
        ...


@contextlib.contextmanager
def scatter_from(storage: Storage, path: str) -> Iterator[Scatter]:
    """What fills many buffers from the object ``path``, inside the block.

    A storage that cannot is asked for all bytes of a call at once, and they are copied.

    Raises:
        InputMissingError: there is no such object; of some storages only when it is read.
    """
    if isinstance(storage, ScatteringStorage):
        with storage.scatter_from(path) as scatter:
            yield scatter
        return

    def copy(buffers: Sequence[memoryview], offset: int) -> Iterator[int]:
        data = memoryview(bytearray(sum(map(len, buffers))))
        if storage.read_into(path, data, offset) < len(data):
            return
        for buffer in buffers:
            buffer[:] = data[: len(buffer)]
            data = data[len(buffer) :]
        yield len(buffers)

    yield copy
