"""Keeping Python's garbage collector out of the time for which training stands still."""

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["not_collecting"]


@contextlib.contextmanager
def not_collecting() -> Iterator[None]:
    """Collect nothing meanwhile.

    Thousands of tensors are thousands of small objects, which are gone a moment later; but while
    they come, Python may look through all that torch has imported, for a tenth of a second.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
