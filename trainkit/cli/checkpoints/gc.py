"""``trainkit checkpoint gc``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainkit.checkpoint.admin.cleaning import (
    DEFAULT_AGE,
    Leftover,
    find_leftovers,
    remove_leftover,
)
from trainkit.checkpoint.admin.locating import open_root
from trainkit.cli.checkpoints import arguments, shown
from trainkit.errors import UsageError

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Remove what is left of saves that were cut off.

    Raises:
        InputMissingError: there is nothing of a checkpoint.
        NoPermissionError: it may not be removed.
    """
    parser = arguments.parser(
        "gc",
        "Remove what is left of saves that were cut off, and nothing that was committed: "
        "uncommitted folders of runs that a later one has followed; those of the latest run, which "
        "may be alive, temporary files and unfinished uploads to an object store, if nothing was "
        "written to them for a long time; marks and pins of folders that have gone.",
        "0; 66 if there is nothing of a checkpoint; 77 if access is refused; 2 for wrong usage.",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be removed, and remove nothing"
    )
    parser.add_argument(
        "--older-than",
        type=arguments.duration,
        default=DEFAULT_AGE,
        metavar="TIME",
        help="how long nothing was written to what may be in use: seconds, or 15m, 1h, 2d "
        f"(default: {shown.age(DEFAULT_AGE)}); give more than the longest save takes",
    )
    options = parser.parse_args(argv)
    storage, named = open_root(options.url)
    if named is not None:
        raise UsageError(f"{options.url} is one step; give the folder above it")
    found = find_leftovers(storage, older_than=options.older_than)
    if not options.dry_run:
        found = [leftover for leftover in found if remove_leftover(storage, leftover)]
    if options.json:
        items = [_as_json(leftover) for leftover in found]
        shown.print_json({"url": storage.url, "dry_run": options.dry_run, "removed": items})
        return 0
    verb = "would be removed" if options.dry_run else "removed"
    for leftover in found:
        print(
            f"{verb}: {leftover.path} ({leftover.kind}, {shown.size(leftover.size)}, "
            f"{shown.age(leftover.age)} old: {leftover.reason})"
        )
    total = shown.size(sum(leftover.size for leftover in found))
    print(f"{shown.count(len(found), 'leftover')}, {total} {verb}")
    return 0


def _as_json(leftover: Leftover) -> dict[str, Any]:
    return {
        "path": leftover.path,
        "kind": leftover.kind,
        "size": leftover.size,
        "age": None if leftover.age is None else round(leftover.age, 3),
        "reason": leftover.reason,
    }
