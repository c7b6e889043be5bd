"""Joining the rooms: ``run``, ``init`` and the ``Context``."""

from trainkit.runtime.context import Context
from trainkit.runtime.entry import init, run

__all__ = ["Context", "init", "run"]
