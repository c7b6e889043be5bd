"""What all benchmarks share: interleaved rounds, medians with their spread, and tables.

A machine is never as quiet, warm or fast as it was a minute ago. So contenders take turns within
a round, in another order each time, and a difference or a ratio is taken within a round, before
the median: whatever slows a whole round cancels out.
"""

import os
import platform
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

__all__ = ["Spread", "machine", "print_table", "shuffled_rounds", "warn_if_busy"]


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise ``values``, one a round; a single one has no spread."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), low, high)

    def show(self, form: str, scale: float = 1.0) -> str:
        """The median and the quartiles, each scaled and printed as ``form`` says."""
        numbers = (self.median * scale, self.low * scale, self.high * scale)
        median, low, high = (format(number, form) for number in numbers)
        return f"{median} ({low} – {high})"


def shuffled_rounds(
    names: Sequence[str], rounds: int, measure: Callable[[str], T], *, seed: int = 0
) -> Iterator[dict[str, T]]:
    """Measure every contender once a round.

    Args:
        names: the contenders.
        rounds: how many times each is measured.
        measure: runs one contender and returns what it took.
        seed: of the order in each round. A fixed order would charge one contender with what its
            predecessor leaves behind in caches and clocks.

    Yields:
        One round's results by name.
    """
    order = list(names)
    shuffle = random.Random(seed).shuffle
    for _ in range(rounds):
        shuffle(order)
        found = {name: measure(name) for name in order}
        yield {name: found[name] for name in names}


def machine() -> str:
    """The machine, as far as it matters for a number."""
    cores = len(os.sched_getaffinity(0))
    load = f"load average {os.getloadavg()[1]:.1f} over 5 minutes"
    return f"{cores} cores ({platform.machine()}), Python {platform.python_version()}, {load}"


def warn_if_busy() -> None:
    """Say so if other work makes these numbers worth little; ratios survive it best."""
    load = os.getloadavg()[0]
    if load > 0.7:
        print(f"warning: load average {load:.1f}: this machine is not quiet", file=sys.stderr)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table that is Markdown, and that is aligned to be read as it is."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return "| " + " | ".join([first, *others]) + " |"

    print(line(header))
    print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    for row in rows:
        print(line(row), flush=True)
