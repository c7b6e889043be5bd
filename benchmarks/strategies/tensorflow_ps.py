"""Steps a second on parameter servers, and how long a worker's death holds training up.

    python -m benchmarks.strategies.tensorflow_ps          # about two minutes

The peer is a loop over TensorFlow's own ClusterCoordinator as its documentation writes it: one
step a dispatch. Both run in the same chief, over the same ps and two workers, in turns.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rounds import Spread, machine, print_table, warn_if_busy
from trainkit.testing import free_port

DEADLINE = 240.0
AT_LEAST, LONGEST = 5.0, 0.1
JOB = "benchmarks.strategies.tensorflow_ps_job"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the job and print how the loops compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="(default: %(default)s)")
    parser.add_argument("--execution", type=int, default=50, help="steps (default: %(default)s)")
    args = parser.parse_args(argv)
    warn_if_busy()
    found = _run(args.rounds, args.execution)
    print(f"{machine()}; {args.rounds} rounds, {args.execution} steps an execution\n")
    rows = []
    for name in ("hand-written", "trainkit"):
        rates = Spread.of(found[name])
        ratios = Spread.of([a / b for a, b in zip(found[name], found["hand-written"], strict=True)])
        rows.append([name, rates.show(",.0f"), ratios.show(".2f")])
    print_table(["loop", "steps a second", "× hand-written"], rows)
    ratio = Spread.of(
        [a / b for a, b in zip(found["trainkit"], found["hand-written"], strict=True)]
    ).median
    print(f"\n{ratio:.1f} × hand-written; target ≥ {AT_LEAST}: {_met(ratio >= AT_LEAST)}")
    stall = found["stall"]
    print(
        f"a worker killed: longest round {found['longest'] * 1e3:.0f} ms, median before "
        f"{found['usual'] * 1e3:.0f} ms: {stall * 1e3:.0f} ms lost; target ≤ "
        f"{LONGEST * 1e3:.0f} ms: {_met(stall <= LONGEST)}"
    )


def _met(yes: bool) -> str:
    return "met" if yes else "missed"


def _run(rounds: int, execution: int) -> dict[str, object]:
    cluster = {
        role: [f"localhost:{free_port()}" for _ in range(count)]
        for role, count in (("chief", 1), ("ps", 1), ("worker", 2))
    }
    tasks = [("ps", 0), ("worker", 0), ("worker", 1), ("chief", 0)]
    started = {}
    try:
        for role, index in tasks:
            config = {"cluster": cluster, "task": {"type": role, "index": index}}
            environ = {
                **os.environ,
                "TF_CONFIG": json.dumps(config),
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "CUDA_VISIBLE_DEVICES": "",
                "ROUNDS": str(rounds),
                "EXECUTION": str(execution),
                "VICTIM": str(started["worker", 1].pid) if role == "chief" else "",
            }
            started[role, index] = subprocess.Popen(
                [sys.executable, "-m", JOB],
                env=environ,
                cwd=Path(__file__).parents[2],
                stdout=subprocess.PIPE if role == "chief" else subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        output, _ = started["chief", 0].communicate(timeout=DEADLINE)
        return json.loads(output.splitlines()[-1])
    finally:
        for process in started.values():
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
