"""The key-value store through which ranks agree, apart from tensors."""

import threading
from typing import Protocol, runtime_checkable

__all__ = ["MemoryStore", "PrefixedStore", "Store"]


@runtime_checkable
class Store(Protocol):
    """A shared map of short byte values.

    For control messages only: who is there, which step, where a tracker listens. All calls
    are safe from any thread. Tensors and bulk data go another way.
    """

    def set(self, key: str, value: bytes) -> None:
        """Write ``value`` under ``key``, over an older one."""
        ...

    def get(self, key: str) -> bytes | None:
        """The value of ``key`` now, or None; never waits."""
        ...

    def wait(self, key: str, seconds: float) -> bool:
        """Wait until ``key`` exists; False if it does not after ``seconds``."""
        ...

    def add(self, key: str, amount: int) -> int:
        """Add to the counter ``key``, from 0, and return its new value."""
        ...

    def delete(self, key: str) -> None:
        """Remove ``key`` if it is there."""
        ...


class MemoryStore:
    """A store within one process: for world size 1, and for ranks that are threads."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()

    def set(self, key: str, value: bytes) -> None:
        """See ``Store.set``."""
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def get(self, key: str) -> bytes | None:
        """See ``Store.get``."""
        with self._changed:
            return self._values.get(key)

    def wait(self, key: str, seconds: float) -> bool:
        """See ``Store.wait``."""
        with self._changed:
            return self._changed.wait_for(lambda: key in self._values, seconds)

    def add(self, key: str, amount: int) -> int:
        """See ``Store.add``."""
        with self._changed:
            total = int(self._values.get(key, b"0")) + amount
            self._values[key] = str(total).encode()
            self._changed.notify_all()
            return total

    def delete(self, key: str) -> None:
        """See ``Store.delete``."""
        with self._changed:
            self._values.pop(key, None)


class PrefixedStore:
    """A part of another store: every key gets a prefix."""

    def __init__(self, prefix: str, store: Store) -> None:
        self._prefix = prefix.rstrip("/") + "/"
        self._store = store

    def set(self, key: str, value: bytes) -> None:
        """See ``Store.set``."""
        self._store.set(self._prefix + key, value)

    def get(self, key: str) -> bytes | None:
        """See ``Store.get``."""
        return self._store.get(self._prefix + key)

    def wait(self, key: str, seconds: float) -> bool:
        """See ``Store.wait``."""
        return self._store.wait(self._prefix + key, seconds)

    def add(self, key: str, amount: int) -> int:
        """See ``Store.add``."""
        return self._store.add(self._prefix + key, amount)

    def delete(self, key: str) -> None:
        """See ``Store.delete``."""
        self._store.delete(self._prefix + key)
