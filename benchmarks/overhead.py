"""Host time that a library adds to each training step, at world size 1.

    pip install -r benchmarks/requirements.txt     # the peers; without them they are left out
    python -m benchmarks.overhead                  # some minutes

The model is so small that nothing but the host's work is left: an MLP of 8 × 8 on 4 samples. All
loops read the same data through the same kind of ``DataLoader``, on one pinned core with one
thread. They take turns within one process, some steps each, so that one and the same heap, cache
and clock serve them all. Where a loop's objects lie in memory makes it some µs faster or slower
for the life of a process, so fresh processes repeat it and make the loops in another order. The
plain loop takes part twice: their mean is the limit, and what lies between the two is the noise of
the method.

The peer's way of each step is its documentation's: Fabric's and Accelerate's ``backward``, their
loaders and optimizers. trainkit's is that of ``docs/from-plain-torch.md`` plus ``ctx.log``; so it
also counts steps, logs, listens for notices to stop and looks whether a checkpoint is due, which
the others do not.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.rounds import Spread, machine, print_table, warn_if_busy

PLAIN, TWIN, OURS = "plain torch", "plain torch again", "trainkit"
TARGET_US = 3.0

Rounds = list[dict[str, float]]
"""Seconds a step by contender, one mapping a round."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the processes one after another and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=9, help="fresh processes (%(default)s)")
    parser.add_argument("--rounds", type=int, default=500, help="in each process (%(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="a turn (%(default)s)")
    parser.add_argument("--core", type=int, help="to pin to; the last by default")
    args = parser.parse_args(argv)
    warn_if_busy()
    command = [sys.executable, "-m", "benchmarks.overhead_loops"]
    command += ["--rounds", str(args.rounds), "--steps", str(args.steps)]
    if args.core is not None:
        command += ["--core", str(args.core)]
    reports = []
    for number in range(args.processes):
        report = subprocess.run(
            [*command, "--seed", str(number)], check=True, stdout=subprocess.PIPE, text=True
        )
        reports.append(json.loads(report.stdout.splitlines()[-1]))
        print(f"process {number + 1} of {args.processes} done", file=sys.stderr)
    _print(reports)


def _print(reports: list[dict[str, Any]]) -> None:
    by_process: list[Rounds] = [report["rounds"] for report in reports]
    rows = []
    for name in by_process[0][0]:
        times = Spread.of([found[name] for process in by_process for found in process])
        version = reports[0]["versions"][name]
        row = [name, version, times.show(".1f", 1e6)]
        added = _added(by_process, name)
        rows.append([*row, "" if name == PLAIN else added.show("+.1f", 1e6)])
    print(f"{machine()}; {len(by_process)} processes of {len(by_process[0])} rounds\n")
    print_table(["loop", "version", "µs a step", "over plain, µs"], rows)
    for name in reports[0]["missing"]:
        print(f"{name}: not installed")
    ours = _added(by_process, OURS).median * 1e6
    verdict = "met" if ours <= TARGET_US else "missed"
    print(f"\ntrainkit adds {ours:+.1f} µs a step; target ≤ +{TARGET_US:.0f} µs: {verdict}")


def _added(by_process: list[Rounds], name: str) -> Spread:
    """Seconds a step over the mean of both plain loops: each process's median, their spread.

    The plain loops themselves are compared with each other.
    """

    def limit(found: dict[str, float]) -> float:
        return found[PLAIN] if name == TWIN else (found[PLAIN] + found[TWIN]) / 2

    return Spread.of(
        [statistics.median(found[name] - limit(found) for found in rounds) for rounds in by_process]
    )


if __name__ == "__main__":
    main()
