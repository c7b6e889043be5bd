"""From kill -9 of a rank to the next all-reduce of both, against torchrun.

    python -m benchmarks.launch.restart            # about four minutes; --rounds 3 for a look

Two ranks train for three seconds until one of them, by turns rank 0 and rank 1, is killed; the
clock stops when the later of the new ranks has its sum. Both launchers may restart three times,
since torchrun's restart in place with gloo does not always work at once, or at all: how often it
did is in the table. Training's next three steps are in a column of their own.
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

DEADLINE = 60.0
"""Seconds in which ranks must have begun to train."""
HANG = 15.0
"""Seconds after which a restart counts as a hang: one that works takes a few."""
TRAINED = 3.0
"""Seconds of training before the kill."""
RESTARTS = 3
MOST, TIMES_FASTER = 0.060, 15.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one kill."""

    what: str
    """``at once``, ``later`` (after a restart that failed too), ``failed`` or ``hung``."""
    met: float = 0.0
    """Seconds from the kill to the all-reduce of the later rank."""
    trained: float = 0.0
    """Seconds from the kill to its third step after that."""


def main(argv: Sequence[str] | None = None) -> None:
    """Kill a rank of each contender in turns and print how they come back."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    warn_if_busy()
    names = [LAUNCH, LAUNCH_RUN, PEER]
    found: dict[str, list[Outcome]] = {name: [] for name in names}
    rng = random.Random(0)
    order = list(names)
    for number in range(args.rounds):
        rng.shuffle(order)
        for name in order:
            pause = TRAINED + rng.uniform(0, 0.05)
            found[name].append(_kill(name, victim=number % 2, pause=pause))
    print(f"{machine()}; {args.rounds} rounds\n")
    times, rows = {}, []
    for name in names:
        ways = ("at once", "later", "failed", "hung")
        row = [name, *(str(sum(o.what == what for o in found[name])) for what in ways)]
        back = [outcome for outcome in found[name] if outcome.what in ways[:2]]
        worked = [outcome for outcome in back if outcome.what == "at once"] or back
        if worked:
            times[name] = Spread.of([outcome.met for outcome in worked])
            row.append(times[name].show(".1f", 1e3))
            row.append(Spread.of([outcome.trained for outcome in worked]).show(".1f", 1e3))
        else:
            row += ["", ""]
        rows.append(row)
    header = ["launcher", "back at once", "later", "failed", "hung"]
    print_table([*header, "ms to the all-reduce", "ms to the third step"], rows)
    print("\nTimes are of those that came back at once, or, where none did, of all that came back.")
    print()
    for name in (LAUNCH, LAUNCH_RUN):
        if name not in times:
            continue
        median = times[name].median
        print(_verdict(f"{name}: {median * 1e3:.1f} ms", median <= MOST, f"≤ {MOST * 1e3:.0f} ms"))
        if PEER in times:
            ratio = times[PEER].median / median
            text = f"{name}: {ratio:.1f} × faster than torchrun where that comes back"
            print(_verdict(text, ratio >= TIMES_FASTER, f"≥ {TIMES_FASTER:g} ×"))


def _kill(name: str, *, victim: int, pause: float) -> Outcome:
    """Start ``name``, kill one rank ``pause`` seconds after all train, and see what comes of it."""
    with start(name, "--max-restarts", str(RESTARTS), arguments=["--steps", "3"]) as running:
        if not running.await_(lambda: _all(running, "trained", 0), DEADLINE):
            raise SystemExit(f"{name} did not train:\n{running.errors()}")
        pid = read_stamps(running.folder, "trained", 0)[victim].pid
        time.sleep(pause)
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        attempts = range(1, RESTARTS + 1)
        hung = not running.await_(lambda: any(_all(running, "trained", n) for n in attempts), HANG)
        back = next((n for n in attempts if _all(running, "trained", n)), None)
        if back is None:
            return Outcome("hung" if hung and running.process.poll() is None else "failed")
        met, trained = (
            max(one.time for one in read_stamps(running.folder, event, back).values()) - killed
            for event in ("met", "trained")
        )
        return Outcome("at once" if back == 1 else "later", met, trained)


def _all(running: Running, event: str, restart: int) -> bool:
    return len(read_stamps(running.folder, event, restart)) == 2


def _verdict(text: str, met: bool, target: str) -> str:
    return f"{text}; target {target}: {'met' if met else 'missed'}"


if __name__ == "__main__":
    main()
