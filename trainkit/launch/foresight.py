"""Imports that are not needed yet, by a process that has others to attend to meanwhile."""

import contextlib
import gc
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["import_meanwhile"]


def import_meanwhile(modules: Sequence[str], attend: Callable[[], None]) -> None:
    """Import ``modules``, one of which may take a second, and call ``attend`` all the while.

    A module that is not there or does not work is left out: whoever needs it will say so.

    Args:
        modules: their names.
        attend: called about once a millisecond, while other modules are half imported: it must
            not fork. What it raises, if it is no ``Exception``, ends the imports.
    """
    finder: Any = _Interruption(attend)
    collects = gc.isenabled()
    gc.disable()  # as for the first imports: it would look through all of torch again and again
    sys.meta_path.insert(0, finder)
    try:
        for name in modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    finally:
        sys.meta_path.remove(finder)
        gc.freeze()
        if collects:
            gc.enable()


class _Interruption:
    """A finder that finds nothing: it is asked for each module first, and that is its moment."""

    def __init__(self, attend: Callable[[], None]) -> None:
        self._attend = attend

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        del name, path, target
        self._attend()
