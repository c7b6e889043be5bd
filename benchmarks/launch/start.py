"""From the command to the first all-reduce of two ranks, against torchrun and one import of torch.

    python -m benchmarks.launch.start              # about four minutes; --rounds 3 for a look

The clock starts before the process does and stops when the later of the ranks has its sum; what
it takes until the launcher is gone again is in a column of its own.
"""

import argparse
from collections.abc import Sequence

from benchmarks.launch.launchers import (
    BARE,
    LAUNCH,
    LAUNCH_RUN,
    NO_PRELOAD,
    PEER,
    PEER_RUN,
    start,
)
from benchmarks.launch.stamps import read_stamps
from benchmarks.rounds import Spread, machine, print_table, shuffled_rounds, warn_if_busy

DEADLINE = 120.0
MOST_OF_PEER, MOST_OF_LIMIT, ABOVE_LIMIT = 0.5, 1.05, 0.1


def main(argv: Sequence[str] | None = None) -> None:
    """Run all contenders in turns and print how they compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=11, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    warn_if_busy()
    names = [BARE, LAUNCH, LAUNCH_RUN, NO_PRELOAD, PEER, PEER_RUN]
    whole: dict[str, list[float]] = {name: [] for name in names}

    def measure(name: str) -> float:
        first, total = _seconds(name)
        whole[name].append(total)
        return first

    for name in names:  # fills the page cache and writes .pyc files
        _seconds(name)
    rounds = list(shuffled_rounds(names, args.rounds, measure))
    rows = []
    for name in names:
        times = Spread.of([found[name] for found in rounds])
        row = [name, times.show(".3f"), Spread.of(whole[name]).show(".3f")]
        for other in (BARE, PEER):
            ratio = Spread.of([found[name] / found[other] for found in rounds])
            row.append("" if name == other else ratio.show(".2f"))
        rows.append(row)
    print(f"{machine()}; {len(rounds)} rounds\n")
    header = ["command", "s to the first all-reduce", "s to exit", "× the import", "× torchrun"]
    print_table(header, rows)
    print()
    for name in (LAUNCH, LAUNCH_RUN):
        peer = PEER if name == LAUNCH else PEER_RUN
        ratio = Spread.of([found[name] / found[peer] for found in rounds]).median
        print(_verdict(f"{name}: {ratio:.3f} × {peer}", ratio <= MOST_OF_PEER, MOST_OF_PEER))
        over = [found[name] - MOST_OF_LIMIT * found[BARE] for found in rounds]
        extra = Spread.of(over).median
        text = f"{name}: {MOST_OF_LIMIT} × the import and {extra * 1e3:+.0f} ms"
        print(_verdict(text, extra <= ABOVE_LIMIT, f"{ABOVE_LIMIT * 1e3:.0f} ms"))


def _seconds(name: str) -> tuple[float, float]:
    """Seconds until all ranks have met, and until the end of the command."""
    ranks = 1 if name == BARE else 2
    with start(name) as running:
        code = running.wait(DEADLINE)
        met = read_stamps(running.folder, "met", 0)
        if code != 0 or len(met) != ranks or running.ended is None:
            raise SystemExit(f"{name} ended with {code}, {len(met)} met:\n{running.errors()}")
        last = max(moment.time for moment in met.values())
        return last - running.began, running.ended - running.began


def _verdict(text: str, met: bool, target: object) -> str:
    return f"{text}; target ≤ {target}: {'met' if met else 'missed'}"


if __name__ == "__main__":
    main()
