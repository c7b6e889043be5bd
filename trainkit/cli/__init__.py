"""The ``trainkit`` command."""

from trainkit.cli.entry import main

__all__ = ["main"]
