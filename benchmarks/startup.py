"""Whole-process time of trainkit's commands, from start to exit.

    python -m benchmarks.startup                   # about a minute

`trainkit` is what an image's entry point, a probe or a shell runs, so it may cost hardly more
than Python itself. The limits are an interpreter that does nothing, and one that imports what any
command line with flags and JSON imports. The peer is `torchrun --help`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rounds import Spread, machine, print_table, shuffled_rounds, warn_if_busy

NOTHING = "python -c pass"
LIMIT = 'python -c "import argparse, dataclasses, enum, json, re"'
PEER = "torchrun --help"
OURS = ("trainkit --help", "trainkit env", "trainkit launch --help")
MOST_OF_LIMIT, MOST_OF_PEER = 1.5, 1 / 20


def main(argv: Sequence[str] | None = None) -> None:
    """Run all commands in turns and print how they compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=21, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    warn_if_busy()
    commands = {name: found for name in (NOTHING, LIMIT, *OURS, PEER) if (found := _argv(name))}
    for name in list(commands):
        if problem := _problem(commands[name]):  # also fills the page cache and writes .pyc files
            print(f"{name}: left out, {problem}")
            del commands[name]
    rounds = list(
        shuffled_rounds(list(commands), args.rounds, lambda name: _seconds(commands[name]))
    )
    _print(rounds)


def _argv(name: str) -> list[str] | None:
    """The command with the programs of this interpreter's environment, or None without them."""
    program, _, rest = name.partition(" ")
    if program == "python":
        flag, _, code = rest.partition(" ")
        return [sys.executable, flag, code.strip('"')]
    found = shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        print(f"{name}: not installed")
        return None
    return [found, *rest.split()]


def _problem(command: list[str]) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return f"exit code {done.returncode}: {(done.stderr or done.stdout).strip()[-200:]}"


def _seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def _print(rounds: list[dict[str, float]]) -> None:
    rows = []
    for name in rounds[0]:
        times = Spread.of([found[name] for found in rounds])
        row = [f"`{name}`", times.show(".1f", 1e3)]
        for other, form in ((LIMIT, ".2f"), (PEER, ".3f")):
            known = other in rounds[0] and other != name
            row.append(_ratio(rounds, name, other).show(form) if known else "")
        rows.append(row)
    print(f"{machine()}; {len(rounds)} rounds\n")
    print_table(["command", "ms", "× the imports", "× torchrun --help"], rows)
    print()
    for name in OURS:
        for other, most in ((LIMIT, MOST_OF_LIMIT), (PEER, MOST_OF_PEER)):
            if name in rounds[0] and other in rounds[0]:
                ratio = _ratio(rounds, name, other).median
                verdict = "met" if ratio <= most else "missed"
                print(f"{name}: {ratio:.3f} × {other}; target ≤ {most:.2f}: {verdict}")


def _ratio(rounds: list[dict[str, float]], name: str, other: str) -> Spread:
    return Spread.of([found[name] / found[other] for found in rounds])


if __name__ == "__main__":
    main()
