"""``trainkit checkpoint prune``."""

from __future__ import annotations

from collections.abc import Sequence

from trainkit.checkpoint.admin.locating import open_root, step_folders
from trainkit.checkpoint.admin.pruning import find_surplus, remove_step
from trainkit.cli.checkpoints import arguments, shown
from trainkit.errors import UsageError

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Remove all but the newest checkpoints.

    Raises:
        InputMissingError: there is none.
        NoPermissionError: they may not be removed.
    """
    parser = arguments.parser(
        "prune",
        "Remove all but the newest checkpoints. Only those that are whole count, the last whole "
        "one never goes, nor do pinned ones.",
        "0; 66 if there is no step-… folder; 77 if access is refused; 2 for wrong usage.",
    )
    parser.add_argument(
        "--keep", type=arguments.positive, metavar="N", required=True, help="checkpoints that stay"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be removed, and remove nothing"
    )
    options = parser.parse_args(argv)
    storage, named = open_root(options.url)
    if named is not None:
        raise UsageError(f"{options.url} is one step; give the folder above it")
    step_folders(storage)  # or say what there is instead
    surplus = find_surplus(storage, options.keep)
    if not options.dry_run:
        for folder in surplus:
            remove_step(storage, folder)
    names = [folder.name for folder in surplus]
    if options.json:
        shown.print_json({"url": storage.url, "dry_run": options.dry_run, "removed": names})
        return 0
    verb = "would be removed" if options.dry_run else "removed"
    for name in names:
        print(f"{verb}: {name}")
    print(f"{shown.count(len(names), 'checkpoint')} {verb}")
    return 0
