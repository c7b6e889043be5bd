"""Wall time from a command to 97 % of the embedded test digits, trainkit against the usual shape.

    python -m benchmarks.mnist.race                # some minutes on two cores
    python -m benchmarks.mnist.race --ladder       # and why: one thing at a time is made as the
                                                   # recipe has it, each on top of those above

The usual example stops after the first epoch that reaches the goal. trainkit's recipe knows no
goal: it trains its default epochs and tests once. Both clocks start with the command and stop at
the line of output that reports 97 % or more; a run that ends below counts as missed, and its time
does not count. Every round has another seed. The limit is an interpreter that imports torch and
makes an optimizer, and does nothing else.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.mnist.usual import GOAL
from benchmarks.rounds import Spread, machine, print_table, shuffled_rounds, warn_if_busy

USUAL, OURS, TWO_RANKS, LIMIT = "usual example", "trainkit", "trainkit, torchrun × 2", "limit"
TARGET = 5.0
REPORT = re.compile(r"test accuracy (\d+(?:\.\d+)?)%")

PYTHON = [sys.executable]
LADDER = [*PYTHON, "-m", "benchmarks.mnist.ladder", "--seed", "SEED"]
RECIPE = ["-m", "trainkit.recipes.mnist", "--seed", "SEED"]
MAKE_OPTIMIZER = "import torch; torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a contender."""

    to_goal: float | None
    """Seconds until the line that reports the goal; None if it was missed."""
    to_exit: float
    """Seconds until the process was gone."""
    accuracy: float
    """The last that was reported; 0 if none was."""


def main(argv: Sequence[str] | None = None) -> None:
    """Race, and print how it went."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="(default: %(default)s)")
    parser.add_argument("--ladder", action="store_true", help="also what lies between the two")
    args = parser.parse_args(argv)
    warn_if_busy()
    commands = _commands(ladder=args.ladder)
    runs: dict[str, list[Run]] = {name: [] for name in commands}

    def measure(name: str) -> float:
        run = _run([part.replace("SEED", str(len(runs[name]))) for part in commands[name]])
        runs[name].append(run)
        if name == LIMIT:
            shown = f"{run.to_exit:.2f} s to exit"
        elif run.to_goal is None:
            shown = f"missed, {run.accuracy:.2%}"
        else:
            shown = f"{run.to_goal:.2f} s, {run.accuracy:.2%}"
        print(f"{name}: {shown}", file=sys.stderr)
        return run.to_exit

    for _ in shuffled_rounds(list(commands), args.rounds, measure):
        pass
    _print(runs)


def _commands(*, ladder: bool) -> dict[str, list[str]]:
    torchrun = shutil.which("torchrun", path=str(Path(sys.executable).parent)) or "torchrun"
    rungs = {
        "+ small strided net": [*LADDER, "--small-net"],
        "+ batches from memory": [*LADDER, "--small-net", "--in-memory"],
        "+ Adam, one cycle, one test": [*LADDER, "--small-net", "--in-memory", "--one-cycle"],
    }
    return {
        USUAL: [*PYTHON, "-m", "benchmarks.mnist.usual", "--seed", "SEED"],
        **(rungs if ladder else {}),
        OURS: [*PYTHON, *RECIPE],
        TWO_RANKS: [torchrun, "--standalone", "--nproc-per-node=2", *RECIPE],
        LIMIT: [*PYTHON, "-c", MAKE_OPTIMIZER],
    }


def _run(command: list[str]) -> Run:
    to_goal, accuracy = None, 0.0
    began = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as errors,  # a pipe that nobody reads would fill up
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if report := REPORT.search(line):
                accuracy = float(report[1]) / 100
                if accuracy >= GOAL and to_goal is None:
                    to_goal = time.perf_counter() - began
        process.wait()
        to_exit = time.perf_counter() - began
        errors.seek(0)
        if process.returncode != 0:
            shown = f"{' '.join(command)}: exit code {process.returncode}"
            raise SystemExit(f"{shown}\n{errors.read()[-2000:]}")
    return Run(to_goal, to_exit, accuracy)


def _print(runs: dict[str, list[Run]]) -> None:
    print(f"{machine()}; {len(runs[USUAL])} rounds\n")
    rows = []
    for name, own in runs.items():
        to_exit = Spread.of([run.to_exit for run in own]).show(".2f")
        times = [run.to_goal for run in own if run.to_goal is not None]
        if name == LIMIT:
            rows.append([f"{name}: import torch, one optimizer", "", to_exit, "", ""])
            continue
        reached = Spread.of(times).show(".2f") if times else ""
        accuracies = [run.accuracy for run in own]
        missed = len(own) - len(times)
        accuracy = f"{min(accuracies):.2%} – {max(accuracies):.2%}"
        accuracy += f", {missed} missed" if missed else ""
        ratio = _ratio(runs, name)
        rows.append([name, reached, to_exit, accuracy, ratio.show(".1f") if ratio else ""])
    header = ["command", "s to 97 %", "s to exit", "test accuracy", "× faster than usual"]
    print_table(header, rows)
    ratio = _ratio(runs, OURS)
    if ratio is not None:
        verdict = "met" if ratio.median >= TARGET else "missed"
        print(f"\ntrainkit is {ratio.median:.1f} × faster; target ≥ {TARGET:.0f} ×: {verdict}")


def _ratio(runs: dict[str, list[Run]], name: str) -> Spread | None:
    """How many times faster than the usual example, over the rounds in which both arrived."""
    both = zip(runs[USUAL], runs[name], strict=True)
    ratios = [
        theirs.to_goal / own.to_goal for theirs, own in both if theirs.to_goal and own.to_goal
    ]
    return Spread.of(ratios) if ratios and name != USUAL else None


if __name__ == "__main__":
    main()
