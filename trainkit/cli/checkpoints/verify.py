"""``trainkit checkpoint verify``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from trainkit.checkpoint.admin.locating import find_step, of_step, open_root
from trainkit.checkpoint.admin.survey import State, list_root
from trainkit.checkpoint.admin.verification import Verdict, bytes_to_check, exit_code, verify
from trainkit.checkpoint.format.layout import StepFolder
from trainkit.cli.checkpoints import arguments, shown
from trainkit.cli.checkpoints.progress import bar
from trainkit.errors import ExitCode
from trainkit.resources.cpus import cpu_limit
from trainkit.storage import Storage

__all__ = ["main"]

_FEWEST, _MOST = 4, 16
"""Threads: even one core waits for several answers of a disk or an object store at a time."""


def main(argv: Sequence[str]) -> int:
    """Check committed checkpoints against their checksums.

    Raises:
        InputMissingError: there is no checkpoint, or not that one.
    """
    options = _parser().parse_args(argv)
    storage, named = open_root(options.url)
    chosen = _chosen(storage, options.step, named)
    listing = list_root(storage)
    total = 0 if options.quick else bytes_to_check(listing, chosen)
    threads = options.threads or max(_FEWEST, min(_MOST, int(cpu_limit()[0])))
    began = time.monotonic()
    with bar("verifying", total) as progress:
        verdicts = verify(
            storage, listing, chosen, quick=options.quick, threads=threads, progress=progress
        )
    seconds = time.monotonic() - began
    code = exit_code(verdicts)
    if options.json:
        steps = [_as_json(verdict) for verdict in verdicts]
        shown.print_json(
            {"url": storage.url, "quick": options.quick, "exit_code": code, "checkpoints": steps}
        )
    else:
        for line in _lines(verdicts):
            print(line)
        sys.stdout.flush()
    for line in _complaints(storage, verdicts, code):
        print(f"trainkit: {line}", file=sys.stderr)
    print(_summary(verdicts, seconds, quick=options.quick), file=sys.stderr)
    return code


def _parser() -> Any:
    parser = arguments.parser(
        "verify",
        "Read all files of all committed checkpoints and check every byte against its checksum. "
        "Checkpoints in quarantine are reported and not read, unless --step or URL names them.",
        "0 if all are whole; 65 if one is damaged (named on stderr), or all are in quarantine; "
        "66 if there is none; 77 if access is refused; 78 if one has a newer format; 138 if one "
        "could not be read; 2 for wrong usage.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="check manifests and sizes of files, and read no data"
    )
    parser.add_argument(
        "--step",
        type=arguments.step,
        help="check this step alone (default: all, or the one that URL names)",
    )
    parser.add_argument(
        "--threads",
        type=arguments.positive,
        metavar="N",
        help=f"files read at a time, with 8 MiB of memory each (default: one a CPU, but "
        f"{_FEWEST} to {_MOST})",
    )
    return parser


def _chosen(
    storage: Storage, step: int | None, named: StepFolder | None
) -> list[StepFolder] | None:
    if named is not None:
        return [find_step(storage, step, named)]
    return None if step is None else of_step(storage, step)


def _lines(verdicts: Sequence[Verdict]) -> Iterator[str]:
    rows = [
        (
            str(verdict.folder.step),
            _word(verdict),
            str(verdict.num_files) if verdict.num_files else "-",
            shown.size(verdict.num_bytes) if verdict.num_bytes else "-",
            verdict.folder.name,
        )
        for verdict in verdicts
    ]
    yield from shown.table(("STEP", "STATE", "FILES", "SIZE", "FOLDER"), rows)
    for verdict in verdicts:
        if verdict.quarantined:
            yield f"in quarantine {verdict.folder.name}: {verdict.reason}"
        for path in verdict.unlisted:
            yield f"not listed in the manifest: {verdict.folder.name}/{path}"


def _word(verdict: Verdict) -> str:
    word = "whole" if verdict.state is State.COMMITTED else str(verdict.state)
    aside = verdict.quarantined and verdict.state is not State.QUARANTINED
    return f"{word}, quarantined" if aside else word


def _complaints(storage: Storage, verdicts: Sequence[Verdict], code: ExitCode) -> Iterator[str]:
    for verdict in verdicts:
        for problem in verdict.problems:
            yield f"damaged: {storage.url}/{problem}"
        if verdict.state is State.UNREADABLE:
            yield f"not readable: {storage.url}/{verdict.folder.name}: {verdict.reason}"
    if code is ExitCode.INPUT_MISSING:
        yield f"{storage.url} holds no committed checkpoint: no step-… folder has a manifest"
    elif code is ExitCode.DATA_INVALID and not any(v.problems for v in verdicts):
        yield f"{storage.url}: every committed checkpoint is in quarantine"


def _summary(verdicts: Sequence[Verdict], seconds: float, *, quick: bool) -> str:
    checked = [v for v in verdicts if v.num_files]
    total = sum(verdict.num_bytes for verdict in checked)
    what = shown.count(len(checked), "checkpoint")
    if quick:
        return f"checked manifests and sizes of {what} in {seconds:.1f} s; no data was read"
    rate = shown.size(int(total / max(seconds, 1e-9)))
    return f"verified {what}, {shown.size(total)} in {seconds:.1f} s ({rate}/s)"


def _as_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "step": verdict.folder.step,
        "folder": verdict.folder.name,
        "state": _word(verdict).partition(",")[0],
        "quarantined": verdict.quarantined,
        "problems": verdict.problems,
        "unlisted": verdict.unlisted,
        "reason": verdict.reason or None,
        "num_files": verdict.num_files,
        "size": verdict.num_bytes,
    }
