"""Where a loader's batches come from: a map-style dataset along an order, or a stream."""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from torch.utils.data import DataLoader, IterableDataset

from trainkit.data.position import EpochPlan, SamplePosition, Shard
from trainkit.data.torch.iteration import Iteration, MapIteration, RankBatches, StreamIteration
from trainkit.data.torch.order import order_of
from trainkit.data.torch.stream import CountingCollate, DealtStream
from trainkit.errors import UsageError

__all__ = ["MapSource", "Source", "StreamSource", "source_of"]

log = logging.getLogger(__name__)

Move = Callable[[Any], Any] | None


class Source(Protocol):
    """What differs between map-style and iterable-style datasets."""

    train: bool
    """Whether the rules of training hold."""
    order: str
    """How the order of samples comes about; saved, and compared on restoring."""
    batch_size: int
    """Entries per rank and batch."""
    whole_batches: bool
    """Whether an entry is a whole batch, from a user's own batch sampler."""

    def length(self) -> int | None:
        """Entries in an epoch, if that can be known."""
        ...

    def plan(self, consumed: int) -> EpochPlan | None:
        """The rest of an epoch after ``consumed`` entries, if its length can be known."""
        ...

    def arguments(self, collate: Callable[[Any], Any]) -> dict[str, Any]:
        """What the inner ``DataLoader`` has instead of the user's arguments."""
        ...

    def begin(self, position: SamplePosition, *, over: bool) -> Iteration:
        """A pass from ``position``; ``over`` if the epoch was at its end already."""
        ...

    def batches(self, iteration: Any, inner: Iterator[Any], move: Move) -> Iterator[Any]:
        """Give what ``inner`` loads to the user's loop, and count it in ``iteration``."""
        ...

    def state(self) -> dict[str, Any]:
        """What the dataset itself wants to be saved."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state`` returned."""
        ...


class MapSource:
    """A dataset with indices, in the order that the user's sampler gives."""

    def __init__(
        self, loader: DataLoader[Any], shard: Shard, seed: int, train: bool | None
    ) -> None:
        """Read the order off ``loader``; ``train=None`` decides by it."""
        order = order_of(loader)
        if train is None:
            train = order.kind != "sequential" or order.drop_last
        _check_rules(train, order.drop_last)
        self.train = train
        self.order: str = order.kind
        self.batch_size = order.batch_size
        self.whole_batches = order.kind == "batches"
        self._order = order
        self._shard = shard
        self._seed = seed
        self._rank_batches = RankBatches(lists=order.lists)

    def length(self) -> int:
        """Entries in an epoch, as the sampler says."""
        return len(self._order)

    def plan(self, consumed: int) -> EpochPlan:
        """The rest of an epoch after ``consumed`` entries."""
        return self._plan(len(self._order), consumed)

    def arguments(self, collate: Callable[[Any], Any]) -> dict[str, Any]:
        """This rank's batches stand in for the sampler, or for the batch sampler."""
        lists = self._order.lists or self.whole_batches
        return {"batch_sampler" if lists else "sampler": self._rank_batches, "collate_fn": collate}

    def begin(self, position: SamplePosition, *, over: bool) -> MapIteration:
        """Draw up the epoch's order, and this rank's plan along it."""
        entries = self._order.entries(self._seed, position.epoch)
        iteration = MapIteration(self._plan(len(entries), position.consumed), entries)
        self._rank_batches.current = iteration
        return iteration

    def batches(self, iteration: MapIteration, inner: Iterator[Any], move: Move) -> Iterator[Any]:
        """Count each batch before the loop's body runs: a state saved there includes it."""
        if move is None:
            for batch in inner:
                iteration.received += 1
                yield batch
        else:
            for batch in inner:
                moved = move(batch)
                iteration.received += 1
                yield moved

    def state(self) -> dict[str, Any]:
        """Nothing: a position says it all."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to take back."""

    def _plan(self, length: int, consumed: int) -> EpochPlan:
        drop_last = self._order.drop_last
        return EpochPlan(length, consumed, self._shard, self.batch_size, self.train, drop_last)


class StreamSource:
    """An iterable-style dataset, every rank's and worker's part cut out of the whole stream."""

    order = "stream"
    whole_batches = False

    def __init__(
        self, loader: DataLoader[Any], shard: Shard, seed: int, train: bool | None
    ) -> None:
        """Deal the items of ``loader``'s dataset; ``train=None`` means training."""
        self.train = True if train is None else train
        _check_rules(self.train, loader.drop_last)
        self.batch_size = loader.batch_size or 1
        self._shard = shard
        self._loader = loader
        self._in_process = loader.num_workers == 0
        self._restored = self._begun = False
        self._dealt = DealtStream(
            loader.dataset,
            shard,
            self.batch_size,
            seed=seed,
            train=self.train,
            drop_last=loader.drop_last,
        )

    def length(self) -> int | None:
        """Items of the whole stream, if the dataset says."""
        return length_of(self._loader.dataset)

    def plan(self, consumed: int) -> EpochPlan | None:
        """The rest of an epoch, if the dataset says how long it is."""
        length = self.length()
        if length is None:
            return None
        drop_last = self._loader.drop_last
        return EpochPlan(length, consumed, self._shard, self.batch_size, self.train, drop_last)

    def arguments(self, collate: Callable[[Any], Any]) -> dict[str, Any]:
        """The dealt stream decides what to drop, and the collation says what counts."""
        counting = CountingCollate(collate, lists=self._loader.batch_size is not None)
        return {"dataset": self._dealt, "collate_fn": counting, "drop_last": False}

    def begin(self, position: SamplePosition, *, over: bool) -> StreamIteration:
        """Start the stream, after what was consumed of it."""
        skip = 0 if self._restored else position.consumed
        self._restored, self._begun = False, not over
        if skip and not over:
            log.info(
                "the stream is read up to item %d to continue after it; a dataset with "
                "state_dict() and load_state_dict(), and num_workers=0, would be spared that",
                skip,
            )
        self._dealt.begin(position.epoch, skip)
        step = self._shard.count * self.batch_size
        return StreamIteration(position.consumed, step, finished=over)

    def batches(
        self, iteration: StreamIteration, inner: Iterator[Any], move: Move
    ) -> Iterator[Any]:
        """Count each batch before the loop's body runs, and notice the end."""
        for batch, rows, counting in inner:
            moved = batch if move is None else move(batch)
            iteration.last_rows = (rows, counting)
            iteration.received += 1
            yield moved
        iteration.finished = True

    def state(self) -> dict[str, Any]:
        """The dataset's own state, where it is at the same item as the user's loop."""
        dataset: Any = self._loader.dataset
        # Before its first iteration a dataset is at its beginning, wherever we are to continue.
        in_step = self._begun or self._restored
        if self._in_process and in_step and _is_stateful(dataset):
            return {"dataset": dataset.state_dict()}
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Let the dataset go to its saved place by itself, if it was saved."""
        dataset: Any = self._loader.dataset
        self._begun = False
        # After its last item a dataset's state would be left over for the next epoch.
        unfinished = not state["finished"]
        self._restored = unfinished and "dataset" in state and _is_stateful(dataset)
        if self._restored:
            dataset.load_state_dict(state["dataset"])


def source_of(loader: DataLoader[Any], shard: Shard, seed: int, train: bool | None) -> Source:
    """The source that fits the loader's dataset.

    Raises:
        UsageError: the loader cannot be sharded, or its arguments contradict ``train``.
    """
    if isinstance(loader.dataset, IterableDataset):
        return StreamSource(loader, shard, seed, train)
    return MapSource(loader, shard, seed, train)


def length_of(dataset: Any) -> int | None:
    """The length that a dataset reports, or None if it reports none."""
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def _check_rules(train: bool, drop_last: bool) -> None:
    if drop_last and not train:
        raise UsageError(
            "drop_last=True contradicts train=False: an evaluation drops nothing. Remove "
            "drop_last, or pass train=True if this loader is for training."
        )


def _is_stateful(dataset: Any) -> bool:
    names = ("state_dict", "load_state_dict")
    return all(callable(getattr(dataset, name, None)) for name in names)
