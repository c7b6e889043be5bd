"""``trainkit signal``: reach the launcher of this container behind a shell that is in the way."""

import argparse
import itertools
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from trainkit.cli.entry import HelpFormatter
from trainkit.errors import InputMissingError, UsageError
from trainkit.processes.table import ProcessInfo, process_table
from trainkit.waiting import Deadline, wait_until

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Send a signal to the outermost ``trainkit launch`` of this container.

    Raises:
        UsageError: no such signal.
        InputMissingError: no launcher runs here.
        DeadlineError: it did not end within ``--wait`` seconds.
    """
    options = _parser().parse_args(argv)
    number = _signal(options.signal)
    launchers = _launchers()
    if not launchers:
        raise InputMissingError("no `trainkit launch` runs in this container")
    for info in launchers:
        os.kill(info.pid, number)
        print(f"sent {number.name} to process {info.pid}")
    if options.wait:
        there = {info.pid: info.started for info in launchers}
        wait_until(
            lambda: not any(_lives(pid, started) for pid, started in there.items()),
            what=f"process {', '.join(map(str, there))} to end",
            deadline=Deadline(options.wait),
        )
    return 0


def _lives(pid: int, started: int) -> bool:
    info = process_table().get(pid)
    return info is not None and info.started == started and not info.zombie


def _launchers() -> list[ProcessInfo]:
    """Launchers that no other launcher has started."""
    table = process_table()
    found = {info.pid: info for info in table.values() if _is_launcher(info)}
    return [info for info in found.values() if not _below(info, found, table)]


def _below(
    info: ProcessInfo, launchers: dict[int, ProcessInfo], table: dict[int, ProcessInfo]
) -> bool:
    above = table.get(info.parent)
    while above is not None:
        if above.pid in launchers:
            return True
        above = table.get(above.parent)
    return False


def _is_launcher(info: ProcessInfo) -> bool:
    """Whether it is one; a shell whose text names one is none."""
    try:
        words = Path(f"/proc/{info.pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    pairs = itertools.pairwise(words)
    return any(one.rpartition(b"/")[2] == b"trainkit" and two == b"launch" for one, two in pairs)


def _signal(text: str) -> signal.Signals:
    name = text.upper()
    try:
        if text.isdecimal():
            return signal.Signals(int(text))
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
    except (KeyError, ValueError):
        raise UsageError(f"{text!r} is no signal; expected a name such as TERM") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trainkit signal",
        description="Send a signal to the `trainkit launch` of this container, for a preStop hook "
        "where a shell is PID 1 and passes nothing on.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("signal", metavar="SIGNAL", help="name or number, such as TERM")
    parser.add_argument(
        "--wait",
        metavar="S",
        type=float,
        default=0.0,
        help="wait until it has ended, at most so many seconds (default: do not wait)",
    )
    return parser
