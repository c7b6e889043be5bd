"""``trainkit launch``: the one command for every kind of job."""

import argparse
from collections.abc import Sequence

from trainkit.cli.entry import HelpFormatter
from trainkit.launch.flags import parse_flags

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run what this pod is for, and return the exit code.

    Raises:
        TrainkitError: with the exit code of this process.
    """
    given = parse_flags(argv, _parser())
    from trainkit.launch.command import launch  # late: --help needs nothing of it

    return launch(given)


def _parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="trainkit launch",
        usage="trainkit launch [options] (script.py | -m module) args...",
        description="Run what this pod, or host, is for: its ranks, or one process of a role.\n"
        "What torchrun's flags and PET_* variables say means the same here.",
        formatter_class=HelpFormatter,
    )
