"""Time of saves, stalls and loads against torch.save, DCP, dd and memcpy.

    python -m benchmarks.checkpoint                # a quarter of an hour; --quick for a look
    python -m benchmarks.checkpoint --folder /mnt/pvc/x --json result.json

Contenders take turns within one process; first saves get a process each. The disk is that of
``--folder``.
"""

import argparse
import contextlib
import gc
import json
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

import trainkit
from benchmarks.checkpoint.contenders import LOAD, OPERATIONS, OURS, SAVE
from benchmarks.checkpoint.first import WAYS
from benchmarks.checkpoint.states import STATES, make_model
from benchmarks.rounds import Spread, machine, print_table, shuffled_rounds, warn_if_busy

FIRST = "stall of a process's first save"
MEMCPY = "limit: memcpy"

BIG, MIDDLE, SMALL = STATES
DCP_SAVES = ("DCP save, 1 thread", "DCP save, 2 threads")
TARGETS: tuple[tuple[str, str, tuple[str, ...], float], ...] = (
    (SAVE, BIG, ("limit: dd oflag=direct",), 0.95),
    (SAVE, MIDDLE, DCP_SAVES, 2.3),
    (SAVE, SMALL, DCP_SAVES, 25.0),
    *((FIRST, state, ("DCP async_save",), 5.0) for state in STATES),
    (FIRST, BIG, (MEMCPY,), 1 / 1.2),
    (LOAD, BIG, ("DCP load",), 2.0),
    (LOAD, MIDDLE, ("DCP load",), 5.0),
    (LOAD, SMALL, ("DCP load",), 25.0),
)
"""Operation, state, peers of which the fastest counts, and how many times as fast to be."""

Rounds = list[dict[str, float]]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all operations on all states, and print how they compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--first", type=int, default=20, help="processes (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="3 of both: to see that it runs")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; TMPDIR's by default")
    parser.add_argument("--state", action="append", choices=STATES, help="only this one")
    parser.add_argument("--json", type=Path, help="also write every single time to this file")
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds = args.first = 3
    warn_if_busy()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="benchmark-", dir=args.folder))
    found: dict[str, dict[str, Rounds]] = {}
    print(machine())
    try:
        for operation in (*OPERATIONS, FIRST):
            states = args.state or list(STATES)
            rounds = args.first if operation == FIRST else args.rounds
            found[operation] = {s: _measure(operation, s, rounds, folder) for s in states}
            _print(operation, found[operation])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print()
    for operation, state, peers, least in TARGETS:
        if state in found[operation]:
            print(_verdict(operation, state, found[operation][state], peers, least))
    if args.json:
        about = {"machine": machine(), "torch": torch.__version__, "trainkit": trainkit.__version__}
        args.json.write_text(json.dumps({**about, "seconds": found}, indent=1) + "\n")


def _measure(operation: str, state: str, rounds: int, folder: Path) -> Rounds:
    print(f"{operation}: {state}", file=sys.stderr)
    if operation == FIRST:
        return _first(state, rounds, folder / "first")
    with contextlib.ExitStack() as stack:
        turns = OPERATIONS[operation](stack, make_model(state), state, folder / "work")
        for turn in turns.values():  # first times set things up
            turn()
        gc.collect()
        gc.freeze()  # what peers imported is not to be walked at everybody's cost
        return list(shuffled_rounds(list(turns), rounds, lambda name: turns[name]()))


def _first(state: str, rounds: int, folder: Path) -> Rounds:
    copied: list[float] = []

    def measure(way: str) -> float:
        command = [sys.executable, "-m", "benchmarks.checkpoint.first", way, state, str(folder)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        report: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        if way == OURS:
            copied.append(report["memcpy"])
        return report["seconds"]

    times = list(shuffled_rounds(WAYS, rounds, measure))
    return [{**found, MEMCPY: copy} for found, copy in zip(times, copied, strict=True)]


def _print(operation: str, by_state: dict[str, Rounds]) -> None:
    counts = {len(rounds) for rounds in by_state.values()}
    print(f"\n### {operation[0].upper()}{operation[1:]}\n\n{max(counts)} rounds\n")
    header = ["contender"]
    for state in by_state:
        header += [f"{state}, ms", "× trainkit"]
    rows = []
    for name in next(iter(by_state.values()))[0]:
        row = [name]
        for rounds in by_state.values():
            times = Spread.of([times[name] for times in rounds])
            ratio = "" if name == OURS else _times_ours(rounds, name).show(".2f")
            row += [times.show(".1f", 1e3), ratio]
        rows.append(row)
    print_table(header, rows)
    sys.stdout.flush()


def _times_ours(rounds: Rounds, name: str) -> Spread:
    """How many times as long as trainkit it took, or trainkit's speed in its own."""
    return Spread.of([times[name] / times[OURS] for times in rounds])


def _verdict(operation: str, state: str, rounds: Rounds, peers: Sequence[str], least: float) -> str:
    spreads = {name: _times_ours(rounds, name) for name in peers}
    fastest = min(spreads, key=lambda name: spreads[name].median)
    ratio = spreads[fastest]
    verdict = "met" if ratio.median >= least else "missed"
    name = fastest.removeprefix("limit: ")
    return (
        f"{operation}, {state}: {ratio.show('.2f')} × as fast as {name}; target ≥ {least:.2f}: "
        f"{verdict}"
    )


if __name__ == "__main__":
    main()
