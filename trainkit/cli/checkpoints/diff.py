"""``trainkit checkpoint diff``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from trainkit.checkpoint.admin.comparison import Change, Side, compare
from trainkit.checkpoint.admin.locating import find_step, open_root
from trainkit.cli.checkpoints import arguments, shown
from trainkit.errors import UsageError

__all__ = ["main"]

_DIFFERENT = 1


def main(argv: Sequence[str]) -> int:
    """Show what differs between two checkpoints.

    Raises:
        UsageError: the same checkpoint is meant twice.
        InputMissingError: one of them is not there, or an entry is in neither.
        CheckpointDamagedError: a file of one is missing, cut off or makes no sense.
    """
    options = _parser().parse_args(argv)
    before = _side(options.url, options.before)
    after = _side(options.other or options.url, options.after)
    if (before.storage.url, before.folder) == (after.storage.url, after.folder):
        raise UsageError(
            f"{before.folder.name} would be compared with itself: give --from and --to, or two URLs"
        )
    changes = list(compare(before, after, options.entry))
    if options.json:
        shown.print_json(
            {
                "from": f"{before.storage.url}/{before.folder.name}",
                "to": f"{after.storage.url}/{after.folder.name}",
                "same": not changes,
                "changes": [_as_json(change) for change in changes],
            }
        )
    else:
        for line in _lines(before, after, changes):
            print(line)
    return _DIFFERENT if changes else 0


def _parser() -> Any:
    parser = arguments.parser(
        "diff",
        "Show which entries, tensors and values differ between two checkpoints, bit by bit. What "
        "their checksums show to be the same is not read; `verify` checks that they are right.",
        "0 if they are the same; 1 if they differ; 65 if one is damaged; 66 if one is not "
        "there; 77 if access is refused; 2 for wrong usage.",
    )
    parser.add_argument(
        "other", metavar="URL2", nargs="?", help="where the second one lies (default: URL)"
    )
    parser.add_argument(
        "--from",
        dest="before",
        metavar="STEP",
        type=arguments.step,
        help="step of the first (default: the one that URL names, or else the newest whole one)",
    )
    parser.add_argument(
        "--to",
        dest="after",
        metavar="STEP",
        type=arguments.step,
        help="step of the second (default: the same of URL2)",
    )
    parser.add_argument(
        "--entry",
        metavar="NAME",
        action="append",
        default=[],
        help="compare this entry alone, such as model, or 'rank 0' for what rank 0 has of its "
        "own; may be given several times (default: all)",
    )
    return parser


def _side(url: str, step: int | None) -> Side:
    storage, named = open_root(url)
    return Side.open(storage, find_step(storage, step, named))


def _lines(before: Side, after: Side, changes: Sequence[Change]) -> Iterator[str]:
    yield f"from  {before.storage.url}/{before.folder.name}"
    yield f"to    {after.storage.url}/{after.folder.name}"
    if not changes:
        yield "no difference"
        return
    rows = [
        (change.entry, change.how, change.what, change.name or "-", _both(change))
        for change in changes
    ]
    yield ""
    yield from shown.table(("ENTRY", "HOW", "WHAT", "NAME", "FROM → TO"), rows)
    yield ""
    found = Counter(change.what for change in changes)
    plural = {"entry": "entries"}
    kinds = [shown.count(n, what, plural.get(what, "")) for what, n in found.items()]
    yield f"different: {', '.join(kinds)}"


def _both(change: Change) -> str:
    if change.before == change.after:
        return change.before or "-"
    return f"{change.before or '-'} → {change.after or '-'}"


def _as_json(change: Change) -> dict[str, Any]:
    return {
        "entry": change.entry,
        "document": change.document or None,
        "name": change.name or None,
        "what": change.what,
        "how": change.how,
        "from": change.before or None,
        "to": change.after or None,
    }
