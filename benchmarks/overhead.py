"""Host time that a library adds to each training step, at world size 1.

    pip install -r benchmarks/requirements.txt     # the peers; without them they are left out
    python -m benchmarks.overhead                  # about two minutes

The model is so small that nothing but the host's work is left: an MLP of 8 × 8 on 4 samples. All
loops read the same data through the same kind of ``DataLoader``, on one pinned core with one
thread. They take turns within one process (a pass over the data each), so that one and the same
heap, cache and clock serve them all; fresh processes repeat it, since addresses differ.

The peer's way of each step is its documentation's: Fabric's and Accelerate's ``backward``, their
loaders and optimizers. trainkit's is that of ``docs/from-plain-torch.md`` plus ``ctx.log``; so it
also counts steps, logs, listens for notices to stop and looks whether a checkpoint is due, which
the others do not. The limit is the plain loop.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence

from benchmarks.rounds import Spread, machine, print_table, warn_if_busy

PLAIN = "plain torch"
TARGET_US = 3.0

Rounds = list[dict[str, float]]
"""Seconds a step by contender, one mapping a round."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the processes one after another and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=5, help="fresh processes (%(default)s)")
    parser.add_argument("--rounds", type=int, default=40, help="in each process (%(default)s)")
    parser.add_argument("--steps", type=int, default=250, help="a pass (%(default)s)")
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


def _print(reports: list[dict[str, object]]) -> None:
    by_process: list[Rounds] = [report["rounds"] for report in reports]  # type: ignore[misc]
    versions: dict[str, str] = reports[0]["versions"]  # type: ignore[assignment]
    names = list(by_process[0][0])
    rows = []
    for name in names:
        rounds = [found for process in by_process for found in process]
        times = Spread.of([found[name] for found in rounds])
        row = [name, versions[name], times.show(".1f", 1e6)]
        if name == PLAIN:
            rows.append([*row, "0", ""])
            continue
        added = Spread.of([found[name] - found[PLAIN] for found in rounds])
        medians = [_median_added(process, name) for process in by_process]
        across = f"{min(medians) * 1e6:+.1f} … {max(medians) * 1e6:+.1f}"
        rows.append([*row, added.show("+.1f", 1e6), across])
    print(f"{machine()}; {len(by_process)} processes of {len(by_process[0])} rounds\n")
    print_table(
        ["loop", "version", "µs a step", "over plain, µs", "medians of the processes, µs"], rows
    )
    missing: list[str] = reports[0]["missing"]  # type: ignore[assignment]
    for name in missing:
        print(f"{name}: not installed")
    ours = statistics.median(
        found["trainkit"] - found[PLAIN] for process in by_process for found in process
    )
    verdict = "met" if ours * 1e6 <= TARGET_US else "missed"
    print(f"\ntrainkit adds {ours * 1e6:+.1f} µs a step; target ≤ +{TARGET_US:.0f} µs: {verdict}")


def _median_added(rounds: Rounds, name: str) -> float:
    return statistics.median(found[name] - found[PLAIN] for found in rounds)


if __name__ == "__main__":
    main()
