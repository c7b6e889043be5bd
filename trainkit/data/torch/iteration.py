"""One pass of the user's loop over a loader: how far it came, and what comes next."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from trainkit.data.position import EpochPlan

__all__ = ["Iteration", "MapIteration", "RankBatches", "StreamIteration"]


Entries = Sequence[Any] | torch.Tensor
"""An epoch's order; a tensor if it is long."""


class MapIteration:
    """A pass over a map-style dataset, along a plan."""

    __slots__ = ("entries", "plan", "received")

    def __init__(self, plan: EpochPlan, entries: Entries) -> None:
        """Begin a pass that takes ``entries``, the epoch's order, along ``plan``."""
        self.plan = plan
        self.entries = entries
        self.received = 0
        """Batches that the user's loop was given; the loop counts it up itself, for speed."""

    @property
    def consumed(self) -> int:
        """Entries of the epoch that all ranks together were given, or that were dropped."""
        return self.plan.consumed_after(self.received)

    @property
    def finished(self) -> bool:
        """Whether nothing of the epoch is left."""
        return self.received >= self.plan.num_batches

    def rows(self, *, whole_batches: bool) -> tuple[int, int]:
        """Rows of the batch received last, and how many of them count."""
        counting = self.plan.rows(self.received - 1)
        if not whole_batches:
            return max(counting, 1), counting
        *_, (begin, _) = self._first_ranges(self.received)
        size = len(self.entries[begin])
        return size, size if counting else 0

    def _first_ranges(self, count: int) -> Iterator[tuple[int, int]]:
        return (span for span, _ in zip(self.plan.ranges(), range(count), strict=False))


class StreamIteration:
    """A pass over an iterable-style dataset, whose end shows only when it is reached."""

    __slots__ = ("finished", "last_rows", "received", "start", "step")

    def __init__(self, start: int, step: int, *, finished: bool = False) -> None:
        """Begin a pass after ``start`` items, with batches of ``step`` items of all ranks."""
        self.start = start
        self.step = step
        self.finished = finished
        self.received = 0
        self.last_rows = (0, 0)

    @property
    def consumed(self) -> int:
        """Items that all ranks together were given; more than there are, after the last."""
        return self.start + self.received * self.step

    def rows(self, *, whole_batches: bool) -> tuple[int, int]:
        """Rows of the batch received last, and how many of them count."""
        return self.last_rows


Iteration = MapIteration | StreamIteration


class RankBatches:
    """The index sampler of the inner loader: this rank's batches of the current pass."""

    def __init__(self, *, lists: bool) -> None:
        """Give lists of entries, or (``lists=False``) one entry at a time."""
        self._lists = lists
        self.current: MapIteration | None = None

    def __len__(self) -> int:
        return self.current.plan.num_batches if self.current is not None else 0

    def __iter__(self) -> Iterator[Any]:
        if self.current is None:
            return
        entries, ranges = self.current.entries, self.current.plan.ranges()
        if not self._lists:
            for begin, _ in ranges:
                yield entries[begin]
        elif isinstance(entries, list):
            for begin, end in ranges:
                yield entries[begin:end]
        else:
            for begin, end in ranges:
                part = entries[begin:end]
                yield part.tolist() if isinstance(part, torch.Tensor) else list(part)
