"""``trainkit doctor``: what works here, and what would break this job."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence

from trainkit.cli.entry import HelpFormatter
from trainkit.errors import ExitCode, TopologyError

TYPE_CHECKING = False  # typing itself is a tenth of what `trainkit env` imports
if TYPE_CHECKING:
    from trainkit.doctor import Finding
    from trainkit.doctor.running import Progress

__all__ = ["main"]

_WIDTH = 100
_QUIET = 1.0
"""Seconds of a check before a person at a terminal is told what is waited for."""
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def main(argv: Sequence[str]) -> int:
    """Run the checks and print what they found.

    Returns:
        0: fit; 78: something would break this job.

    Raises:
        UsageError: a URL has credentials in it, or a setting cannot be read.
    """
    options = _parser().parse_args(argv)
    from trainkit.doctor import Question, Status
    from trainkit.doctor.checks import CHECKS
    from trainkit.doctor.running import diagnose
    from trainkit.storage import refuse_credentials

    if options.checkpoint_dir is not None:
        refuse_credentials(options.checkpoint_dir)
    question = Question(
        checkpoint_dir=options.checkpoint_dir,
        across=options.across,
        state_size=options.state_size,
        loader_workers=options.loader_workers,
        batch_size=options.batch_size,
        timeout=options.timeout,
    )
    helps_only = options.across and _is_beside_the_first()
    wanted = ["all-reduce-across"] if helps_only else options.only
    known = [entry.name for entry in CHECKS]
    for name in wanted or ():
        if name not in known:
            _parser().error(f"--only {name}: no such check; there are {', '.join(known)}")
    checks = [entry for entry in CHECKS if not wanted or entry.name in wanted]
    with _shown_progress() as progress:
        findings = diagnose(question, checks=checks, progress=progress)
    broken = any(finding.status is Status.BROKEN for finding in findings)
    if not helps_only or broken:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")
        if options.json:
            print(json.dumps(_as_json(findings), indent=2))
        else:
            print("\n".join(_lines(findings)))
    return int(ExitCode.ENVIRONMENT if broken else ExitCode.DONE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainkit doctor",
        description=textwrap.fill(
            "Say what works here and what would break this job, before it burns an hour: GPUs, "
            "driver, all-reduce, shared memory, memory, CPUs, limits, DNS of the peers, the "
            "checkpoint folder, clocks, a sidecar. Run it in the job's image and pod.",
            90,
        ),
        epilog="Exit codes: 0: fit; 78: something would break this job; 2 for wrong usage.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--across",
        action="store_true",
        help="meet the other pods of the job, which have to run this at the same time, and sum "
        "over all ranks; under torchrun or mpirun, too",
    )
    parser.add_argument(
        "--checkpoint-dir",
        metavar="URL",
        help="where checkpoints are to lie (default: TRAINKIT_CHECKPOINT_DIR); written to in a "
        "folder of its own, which is removed",
    )
    parser.add_argument(
        "--state-size",
        metavar="SIZE",
        type=_size,
        help="size of a checkpoint, such as 14GiB: model and optimizer",
    )
    parser.add_argument(
        "--loader-workers",
        metavar="N",
        type=_count,
        help="num_workers of the DataLoader of each rank",
    )
    parser.add_argument(
        "--batch-size",
        metavar="SIZE",
        type=_size,
        help="bytes of one batch of a rank, such as 38MiB",
    )
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        help="seconds for each check (default: 20 to 120; TRAINKIT_TIMEOUT and 60 for --across)",
    )
    parser.add_argument(
        "--only",
        metavar="CHECK",
        action="append",
        help="run this check alone; may be given several times",
    )
    return parser


def _is_beside_the_first() -> bool:
    """Whether this is a rank beside another one of its host, which looks at the host."""
    from dataclasses import replace

    from trainkit.topology import Sight, detect

    try:
        # A driver that hangs must not hang this process; and for ranks GPUs do not matter.
        topology = detect(replace(Sight.here(), visible_gpus=0))
    except TopologyError:
        return False
    return not topology.starts_ranks and bool(topology.local_rank)


def _as_json(findings: Sequence[Finding]) -> dict[str, object]:
    rows = [finding.to_json() for finding in findings]
    return {
        "fit": not any(row["status"] == "broken" for row in rows),
        "host": os.uname().nodename,
        "findings": rows,
    }


def _lines(findings: Sequence[Finding]) -> Iterator[str]:
    names = max(len("CHECK"), *(len(finding.check) for finding in findings))
    states = max(len(finding.status) for finding in findings)
    begin = f"{'':<{names}}  {'':<{states}}  "
    yield f"{'CHECK':<{names}}  {'':<{states}}  FOUND"
    for finding in findings:
        head = f"{finding.check:<{names}}  {finding.status:<{states}}  "
        yield from _wrapped(finding.found, head, begin)
        if finding.advice:
            yield from _wrapped(finding.advice, f"{begin}→ ", f"{begin}  ")
    yield ""
    yield _verdict(findings)


def _wrapped(text: str, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _verdict(findings: Sequence[Finding]) -> str:
    counts = {
        word: sum(finding.status == word for finding in findings)
        for word in ("would break", "warning", "not checked")
    }
    broken = counts["would break"]
    first = f"{broken} thing(s) would break this job" if broken else "fit"
    rest = [f"{counts['warning']} warning(s)", f"{counts['not checked']} not checked"]
    return ", ".join([first, *rest])


@contextlib.contextmanager
def _shown_progress() -> Iterator[Progress | None]:
    """One line on stderr that says what is waited for, for a person at a terminal."""
    if not (sys.stderr and sys.stderr.isatty()):
        yield None
        return

    def progress(running: Sequence[tuple[str, float, float]]) -> None:
        slow = [
            f"{name} ({since:.0f} of {most:.0f} s)"
            for name, since, most in running
            if since > _QUIET
        ]
        line = f"checking {', '.join(slow)}"[: _WIDTH - 1] if slow else ""
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()

    try:
        yield progress
    finally:
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()


def _size(text: str) -> int:
    """Bytes, written as 1000000, 64MB or 14GiB; K, M, G and T are powers of 1024 in all."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size, such as 14GiB")
    return int(float(match[1]) * (1 << _UNITS[match[2].upper()]))


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number, 0 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a positive number of seconds")
    return value
