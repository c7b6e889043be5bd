"""Iterable-style datasets, dealt to ranks and workers without overlap.

Every worker of every rank reads the whole stream and keeps what is its own. So no agreement is
needed: all of them know where the stream ends, and all ranks have the same number of batches.
The price is that reading is not shared; put costly work into a map-style dataset instead.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils import worker as torch_worker

from trainkit.data.position import EpochPlan, Shard
from trainkit.data.seeds import derive_seed
from trainkit.data.torch.randomness import PrivateRandom

__all__ = ["CountingCollate", "DealtStream"]


class Filler:
    """An item that does not count; it only keeps a rank in step with the others."""

    __slots__ = ("item",)

    def __init__(self, item: Any) -> None:
        self.item = item


class CountingCollate:
    """A ``collate_fn`` that also says how many rows of the batch count.

    Only the worker that reads the end of the stream knows.
    """

    def __init__(self, collate: Callable[[Any], Any], *, lists: bool) -> None:
        """Wrap the user's ``collate``, which is given lists of items or one item at a time."""
        self._collate = collate
        self._lists = lists

    def __call__(self, items: Any) -> tuple[Any, int, int]:
        """Return the batch, its rows, and how many of them count: all, or none of a filler."""
        rows = len(items) if self._lists else 1
        first = items[0] if self._lists else items
        if isinstance(first, Filler):
            return self._collate([first.item] if self._lists else first.item), rows, 0
        return self._collate(items), rows, rows


class DealtStream(IterableDataset[Any]):
    """One rank's part of an iterable-style dataset, split again among its workers.

    The stream is cut into global batches of W*B items. Rank r takes the r-th slice of B of
    each, and worker w of n takes the global batches w, w + n, …: what the loader then gives is
    in the same order whatever the number of workers.
    """

    def __init__(
        self,
        dataset: Any,
        shard: Shard,
        batch_size: int,
        *,
        seed: int,
        train: bool,
        drop_last: bool,
    ) -> None:
        """Deal the items of ``dataset`` in batches of ``batch_size`` items per rank."""
        self.dataset = dataset
        self._shard = shard
        self._batch_size = batch_size
        self._seed = seed
        self._train = train
        self._drop_last = drop_last
        self._place: tuple[int, int] | None = None
        self.epoch = 0
        self.skip = 0

    def begin(self, epoch: int, skip: int) -> None:
        """Say where the next iteration begins: after ``skip`` items of ``epoch``."""
        self.epoch, self.skip = epoch, skip

    def __iter__(self) -> Iterator[Any]:
        if self._place is None:
            info = get_worker_info()
            self._place = (info.id, info.num_workers) if info is not None else (0, 1)
        epoch, skip = self.epoch, self.skip
        # In the loader's process begin() comes before every iteration. A persistent worker
        # has a copy of its own, which has to count the epochs by itself.
        self.begin(epoch + 1, 0)
        return self._deal(*self._place, epoch, skip)

    def _deal(self, worker: int, workers: int, epoch: int, skip: int) -> Iterator[Any]:
        privately = PrivateRandom(derive_seed(self._seed, "stream", epoch))
        count, batch = self._shard.count * self._batch_size, self._batch_size
        mine = self._shard.index * batch
        with privately, _unseen_worker():
            if callable(set_epoch := getattr(self.dataset, "set_epoch", None)):
                set_epoch(epoch)
            stream = iter(self.dataset)
            next(islice(stream, skip, skip), None)
        number = 0
        while True:
            with privately, _unseen_worker():
                items = list(islice(stream, count))
            if number % workers == worker:
                if len(items) == count:
                    yield from items[mine : mine + batch]
                else:
                    yield from self._last(items)
            if len(items) < count:
                return
            number += 1

    def _last(self, items: list[Any]) -> Iterator[Any]:
        """This rank's items of the partial global batch at the end of the stream."""
        plan = EpochPlan(len(items), 0, self._shard, self._batch_size, self._train, self._drop_last)
        for begin, end in plan.ranges():
            if plan.rows(0):
                yield from items[begin:end]
            else:
                yield Filler(items[begin])


@contextmanager
def _unseen_worker() -> Iterator[None]:
    """Let ``get_worker_info()`` say that this is no worker while the stream is read.

    A dataset that shards by worker itself, as torch's documentation advises, would otherwise
    be sharded twice and lose data.
    """
    info = torch_worker._worker_info
    torch_worker._worker_info = None
    try:
        yield
    finally:
        torch_worker._worker_info = info
