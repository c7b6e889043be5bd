"""Two ranks up to their third step of SGD: what importing ahead of the forks costs and gives.

    python -m benchmarks.launch.first_steps        # two minutes

With --max-restarts the launcher imports what training needs later, which ranks do by themselves
otherwise. The clock starts before the command does; memory is a rank's own, after that step.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.launch.launchers import LAUNCH, PEER, start
from benchmarks.launch.stamps import read_stamps
from benchmarks.rounds import Spread, machine, print_table, shuffled_rounds, warn_if_busy

DEADLINE = 120.0
AHEAD = f"{LAUNCH} --max-restarts 3"
FLAGS = {LAUNCH: (), AHEAD: ("--max-restarts", "3"), PEER: ()}


@dataclass(frozen=True, slots=True)
class Begun:
    """One start: seconds to the first all-reduce and to the third step, and MB of a rank's own."""

    met: float
    trained: float
    private: float


def main(argv: Sequence[str] | None = None) -> None:
    """Run all contenders in turns and print how they compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    warn_if_busy()
    names = list(FLAGS)
    for name in names:  # fills the page cache and writes .pyc files
        _begin(name)
    rounds = list(shuffled_rounds(names, args.rounds, _begin))
    print(f"{machine()}; {len(rounds)} rounds\n")
    rows = []
    for name in names:
        found = [one[name] for one in rounds]
        rows.append(
            [
                name,
                Spread.of([one.met for one in found]).show(".2f"),
                Spread.of([one.trained for one in found]).show(".2f"),
                Spread.of([one.private for one in found]).show(".0f"),
            ]
        )
    header = ["command", "s to the first all-reduce", "s to the third step", "MB of a rank's own"]
    print_table(header, rows)


def _begin(name: str) -> Begun:
    base = LAUNCH if name == AHEAD else name
    with start(base, *FLAGS[name], arguments=["--steps", "3"]) as running:

        def trained() -> bool:
            return len(read_stamps(running.folder, "trained", 0)) == 2

        if not running.await_(trained, DEADLINE):
            raise SystemExit(f"{name} did not train:\n{running.errors()}")
        ends = read_stamps(running.folder, "trained", 0)
        private = sum(_private(one.pid) for one in ends.values()) / len(ends)
        met, last = (
            max(one.time for one in read_stamps(running.folder, event, 0).values())
            for event in ("met", "trained")
        )
        return Begun(met - running.began, last - running.began, private)


def _private(pid: int) -> float:
    """MB of memory that this process shares with no other."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(map(int, re.findall(r"Private_\w+: +(\d+) kB", text))) / 1024


if __name__ == "__main__":
    main()
