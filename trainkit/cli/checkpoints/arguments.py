"""Flags that several commands have, and values that people write."""

from __future__ import annotations

import argparse
import re
import textwrap

from trainkit.cli.entry import HelpFormatter

__all__ = ["duration", "parser", "positive", "step"]

_WIDTH = 90  # as the help of flags
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parser(
    command: str, description: str, codes: str, *, json: bool = True
) -> argparse.ArgumentParser:
    """A parser with the URL and ``--json``.

    Args:
        command: name of the command.
        description: what it does.
        codes: meanings of its exit codes.
        json: whether it has ``--json``.
    """
    made = argparse.ArgumentParser(
        prog=f"trainkit checkpoint {command}",
        description=textwrap.fill(description, _WIDTH),
        epilog=textwrap.fill(f"Exit codes: {codes}", _WIDTH),
        formatter_class=HelpFormatter,
    )
    made.add_argument(
        "url",
        metavar="URL",
        help="folder of checkpoints: a path, file:///path or s3://bucket/folder",
    )
    if json:
        made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def duration(text: str) -> float:
    """Seconds, written as 90, 90s, 15m, 1h or 2d."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected seconds, or 15m, 1h, 2d")
    return float(match[1]) * _UNITS[match[2]]


def step(text: str) -> int:
    """A number of steps."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of steps, 0 or more")
    return int(text)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 1 or more")
    return int(text)
