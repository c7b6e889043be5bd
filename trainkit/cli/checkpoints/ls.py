"""``trainkit checkpoint ls``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from trainkit.checkpoint.admin.locating import open_root
from trainkit.checkpoint.admin.survey import StepSummary, survey
from trainkit.cli.checkpoints import arguments, shown
from trainkit.errors import UsageError

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """List all step folders of a root, newest save first.

    Raises:
        InputMissingError: there is none.
    """
    options = arguments.parser(
        "ls",
        "List the checkpoints of a folder, the newest save first. Reads manifests and one "
        "listing, "
        "no data: `damaged` here means a manifest or sizes of files that are wrong.",
        "0; 66 if there is no step-… folder; 77 if access is refused; 2 for wrong usage.",
    ).parse_args(argv)
    storage, named = open_root(options.url)
    if named is not None:
        raise UsageError(f"{options.url} is one step; `trainkit checkpoint inspect` shows it")
    found, now = survey(storage), time.time()
    if options.json:
        steps = [_as_json(summary, now) for summary in found]
        shown.print_json({"url": storage.url, "checkpoints": steps})
        return 0
    head = ("STEP", "STATE", "SIZE", "AGE", "RANKS", "METRICS", "FOLDER")
    for line in shown.table(head, [_row(summary, now) for summary in found]):
        print(line)
    for summary in found:
        if summary.reason:
            print(f"{summary.state} {summary.folder.name}: {summary.reason}")
    return 0


def _row(summary: StepSummary, now: float) -> tuple[str, ...]:
    return (
        str(summary.folder.step),
        f"{summary.state}, pinned" if summary.pinned else str(summary.state),
        shown.size(summary.size),
        shown.age(None if summary.written is None else now - summary.written),
        "-" if summary.world_size is None else str(summary.world_size),
        shown.metrics(summary.metrics),
        summary.folder.name,
    )


def _as_json(summary: StepSummary, now: float) -> dict[str, Any]:
    written = summary.written
    return {
        "step": summary.folder.step,
        "folder": summary.folder.name,
        "state": str(summary.state),
        "reason": summary.reason or None,
        "pinned": summary.pinned,
        "size": summary.size,
        "written": written,
        "age": None if written is None else round(now - written, 3),
        "world_size": summary.world_size,
        "metrics": shown.metrics_json(summary.metrics),
    }
