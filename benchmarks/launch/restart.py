"""From kill -9 of a rank to the next all-reduce of both, against torchrun.

    python -m benchmarks.launch.restart            # about four minutes; --rounds 3 for a look

Two ranks train until one of them, by turns rank 0 and rank 1, is killed; the clock stops when the
later of the new ranks has its sum. torchrun's restart in place with gloo does not always work: how
often it did is in the table, and times are of those. The harness waits for what ranks note, with a
deadline, and the next step of training is in a column of its own.
"""

import argparse
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.launch.launchers import LAUNCH, LAUNCH_RUN, PEER, Running, start
from benchmarks.launch.stamps import read_stamps
from benchmarks.rounds import Spread, machine, print_table, warn_if_busy

DEADLINE = 30.0
"""Seconds after which a restart counts as a hang."""
MOST, TIMES_FASTER = 0.060, 15.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one kill."""

    what: str
    """``worked``, ``failed`` or ``hung``."""
    met: float = 0.0
    """Seconds from the kill to the all-reduce of the later rank."""
    trained: float = 0.0
    """Seconds from the kill to its third step after that."""


def main(argv: Sequence[str] | None = None) -> None:
    """Kill a rank of each contender in turns and print how they come back."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    warn_if_busy()
    names = [LAUNCH, LAUNCH_RUN, PEER]
    found: dict[str, list[Outcome]] = {name: [] for name in names}
    rng = random.Random(0)
    order = list(names)
    for number in range(args.rounds):
        rng.shuffle(order)
        for name in order:
            found[name].append(_kill(name, victim=number % 2, pause=rng.uniform(0, 0.05)))
    print(f"{machine()}; {args.rounds} rounds\n")
    times, rows = {}, []
    for name in names:
        worked = [outcome for outcome in found[name] if outcome.what == "worked"]
        row = [name, f"{len(worked)} of {args.rounds}"]
        row += [str(sum(o.what == what for o in found[name])) for what in ("failed", "hung")]
        if worked:
            times[name] = Spread.of([outcome.met for outcome in worked])
            row.append(times[name].show(".1f", 1e3))
            row.append(Spread.of([outcome.trained for outcome in worked]).show(".1f", 1e3))
        else:
            row += ["", ""]
        rows.append(row)
    header = ["launcher", "worked", "failed", "hung", "ms to the all-reduce", "ms to a step"]
    print_table(header, rows)
    print()
    for name in (LAUNCH, LAUNCH_RUN):
        if name not in times:
            continue
        median = times[name].median
        print(_verdict(f"{name}: {median * 1e3:.1f} ms", median <= MOST, f"≤ {MOST * 1e3:.0f} ms"))
        if PEER in times:
            ratio = times[PEER].median / median
            text = f"{name}: {ratio:.1f} × faster than torchrun where that works"
            print(_verdict(text, ratio >= TIMES_FASTER, f"≥ {TIMES_FASTER:g} ×"))


def _kill(name: str, *, victim: int, pause: float) -> Outcome:
    """Start ``name``, kill one rank ``pause`` seconds after all train, and see what comes of it."""
    with start(name, "--max-restarts", "1", arguments=["--steps", "5"]) as running:
        if not running.await_(lambda: _all(running, "trained", 0), DEADLINE):
            raise SystemExit(f"{name} did not train:\n{running.errors()}")
        pid = read_stamps(running.folder, "trained", 0)[victim].pid
        time.sleep(pause)
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        code = running.wait(DEADLINE)
        met = read_stamps(running.folder, "met", 1)
        trained = read_stamps(running.folder, "trained", 1)
        if code != 0 or len(met) != 2 or len(trained) != 2:
            return Outcome("hung" if code is None else "failed")
        last = (max(one.time for one in stamps.values()) for stamps in (met, trained))
        return Outcome("worked", *(moment - killed for moment in last))


def _all(running: Running, event: str, restart: int) -> bool:
    return len(read_stamps(running.folder, event, restart)) == 2


def _verdict(text: str, met: bool, target: str) -> str:
    return f"{text}; target {target}: {'met' if met else 'missed'}"


if __name__ == "__main__":
    main()
