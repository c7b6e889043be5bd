"""Which samples a rank takes: index arithmetic over one epoch's order, nothing else.

Letters: N entries in the epoch's order, W ranks, B entries per rank and batch. A *global
batch* is the next W*B entries of the order, and rank r takes the r-th contiguous slice of B.
So one rank with 2B sees the same global batches as two ranks with B, and a position is one
number, the count of entries that all ranks together have consumed: any other W or B goes on
from it without losing or repeating a sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from trainkit.errors import UsageError

__all__ = ["EpochPlan", "SamplePosition", "Shard"]


@dataclass(frozen=True, slots=True)
class Shard:
    """Share ``index`` of ``count`` equal shares of the data."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.index < self.count:
            raise UsageError(
                f"expected a shard index from 0 to count - 1, found {self.index} of {self.count}"
            )


@dataclass(frozen=True, slots=True)
class EpochPlan:
    """The batches of one rank, from a position to the end of the epoch.

    Training (``train=True``) splits the last partial global batch evenly and drops what is
    left over, fewer than W entries; with ``drop_last`` the whole partial batch is dropped.
    Evaluation neither drops nor pads: ranks take shares that differ by one entry at most, and
    a rank whose share is empty reads one entry that does not count (``rows`` is 0), so that
    all ranks have the same number of batches.
    """

    length: int
    """N: entries in the epoch's order."""
    start: int
    """Entries that were consumed before this plan begins."""
    shard: Shard
    """r of W."""
    batch_size: int
    """B: entries per rank and batch."""
    train: bool = True
    """Whether the rules of training hold, or those of evaluation."""
    drop_last: bool = False
    """Whether a partial global batch is dropped; training only."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"expected a batch size of 1 or more, found {self.batch_size}")
        if self.length < 0 or self.start < 0:
            raise UsageError(
                f"expected a length and a position of 0 or more, found {self.length} entries "
                f"and position {self.start}"
            )
        if self.drop_last and not self.train:
            raise UsageError("drop_last is a rule of training, and evaluation never drops")

    @property
    def global_batch(self) -> int:
        """W*B: entries that one batch of all ranks consumes."""
        return self.shard.count * self.batch_size

    @property
    def num_full(self) -> int:
        """Batches in which every rank takes B entries."""
        return max(0, self.length - self.start) // self.global_batch

    @property
    def remainder(self) -> int:
        """Entries after the last full global batch; from 0 to W*B - 1."""
        return max(0, self.length - self.start) % self.global_batch

    @property
    def has_partial(self) -> bool:
        """Whether a partial batch follows the full ones."""
        if not self.train:
            return self.remainder > 0
        return not self.drop_last and self.remainder >= self.shard.count

    @property
    def num_batches(self) -> int:
        """Batches of this plan, the same on all ranks."""
        return self.num_full + self.has_partial

    @property
    def dropped(self) -> int:
        """Entries at the end of the epoch that no rank takes."""
        if not self.train:
            return 0
        return self.remainder % self.shard.count if self.has_partial else self.remainder

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Yield the half-open range of the order that each batch of this rank reads."""
        batch, step = self.batch_size, self.global_batch
        first = self.start + self.shard.index * batch
        for begin in range(first, first + self.num_full * step, step):
            yield begin, begin + batch
        if self.has_partial:
            begin, end = self._partial()
            yield (begin, end) if end > begin else (self.length - 1, self.length)

    def rows(self, batch: int) -> int:
        """Entries of batch number ``batch`` (from 0) that count on this rank."""
        if batch < self.num_full:
            return self.batch_size
        begin, end = self._partial()
        return end - begin

    def consumed_after(self, batches: int) -> int:
        """The position after the first ``batches`` batches of the plan.

        What is dropped counts as consumed with the last batch, so a finished epoch is at N.
        """
        if batches >= self.num_batches:
            return max(self.length, self.start)
        return self.start + batches * self.global_batch

    def _partial(self) -> tuple[int, int]:
        """This rank's range of the partial batch; empty where its share is empty."""
        index, count = self.shard.index, self.shard.count
        share, extra = divmod(self.remainder, count)
        if self.train:
            extra = 0
        begin = self.length - self.remainder + index * share + min(index, extra)
        return begin, begin + share + (index < extra)


@dataclass(frozen=True, slots=True)
class SamplePosition:
    """Where in the data a job is, in terms that no number of ranks enters."""

    seed: int
    """What the order of every epoch is derived from."""
    epoch: int = 0
    """Counts from 0."""
    consumed: int = 0
    """Entries of the epoch's order that all ranks together were given, or that were dropped."""

    def next_epoch(self) -> "SamplePosition":
        """The beginning of the epoch after this one."""
        return replace(self, epoch=self.epoch + 1, consumed=0)

    def plan(
        self,
        length: int,
        shard: Shard,
        batch_size: int,
        *,
        train: bool = True,
        drop_last: bool = False,
    ) -> EpochPlan:
        """The batches of one rank from here to the end of an epoch of ``length`` entries."""
        return EpochPlan(length, self.consumed, shard, batch_size, train, drop_last)
