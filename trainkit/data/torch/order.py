"""What order a user's ``DataLoader`` asks for, and that order as a list for each epoch."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from trainkit.data.seeds import derive_seed
from trainkit.data.torch.randomness import PrivateRandom
from trainkit.errors import UsageError

__all__ = ["EpochOrder", "order_of"]

log = logging.getLogger(__name__)

_LIST_LIMIT = 1 << 22
"""Entries up to which a permutation is kept as a list: 36 bytes an entry, and 1 µs a batch
faster than a tensor of 8 bytes an entry."""

Kind = Literal["sequential", "shuffled", "sampler", "batches"]


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """The order of samples that a ``DataLoader`` was built to give."""

    kind: Kind
    """How the order comes about; "batches" is a user's own batch sampler."""
    source: Any
    """The sampler, or the batch sampler, that is iterated for the order."""
    batch_size: int
    """Entries per rank and batch; 1 where an entry is a sample or a batch by itself."""
    drop_last: bool
    """Whether the loader asked to drop a partial batch."""
    lists: bool
    """Whether a batch is a list of entries, to be collated, or one entry as it is."""

    def __len__(self) -> int:
        return len(self.source)

    def entries(self, seed: int, epoch: int) -> Sequence[Any] | torch.Tensor:
        """The order of one epoch: the same for the same seed and epoch, on every rank.

        Returns:
            Entries of the epoch's order: indices, or whatever the user's sampler gives; whole
            batches of them if ``kind`` is "batches".
        """
        if self.kind == "sequential":
            return range(len(self.source))
        order_seed = derive_seed(seed, "order", epoch)
        if self.kind == "shuffled":
            generator = torch.Generator().manual_seed(order_seed)
            order = torch.randperm(len(self.source), generator=generator)
            return cast(list[int], order.tolist()) if len(order) <= _LIST_LIMIT else order
        return self._ask_sampler(order_seed, epoch)

    def _ask_sampler(self, order_seed: int, epoch: int) -> list[Any]:
        """All that the user's sampler gives, with every generator it may draw from seeded."""
        samplers = [self.source, getattr(self.source, "sampler", None)]
        generators = []
        for sampler in samplers:
            if callable(set_epoch := getattr(sampler, "set_epoch", None)):
                set_epoch(epoch)
            generator = getattr(sampler, "generator", None)
            if isinstance(generator, torch.Generator):
                generators.append((generator, generator.get_state()))
                generator.manual_seed(derive_seed(order_seed, generator.initial_seed()))
        try:
            with PrivateRandom(order_seed):
                return list(self.source)
        finally:
            for generator, state in generators:
                generator.set_state(state)


def order_of(loader: DataLoader[Any]) -> EpochOrder:
    """Find out which order a loader of a map-style dataset asks for.

    Raises:
        UsageError: the sampler shards by itself, or has no length.
    """
    batches = loader.batch_sampler
    if batches is not None and type(batches) is not BatchSampler:
        _check(batches)
        return EpochOrder("batches", batches, 1, drop_last=False, lists=False)
    if batches is None:
        sampler, batch_size, drop_last = loader.sampler, 1, False
    else:
        sampler, batch_size, drop_last = batches.sampler, batches.batch_size, batches.drop_last
    kind: Kind = "sampler"
    if type(sampler) is DistributedSampler:
        log.warning(
            "the loader's DistributedSampler is replaced: trainkit shards over the ranks and "
            "reshuffles each epoch by itself. Remove it (and set_epoch) and pass shuffle=%s.",
            sampler.shuffle,
        )
        kind = "shuffled" if sampler.shuffle else "sequential"
        sampler = SequentialSampler(sampler.dataset)  # type: ignore[arg-type]
    elif type(sampler) is SequentialSampler:
        kind = "sequential"
    elif type(sampler) is RandomSampler and not sampler.replacement:
        whole = sampler.num_samples == len(sampler.data_source)
        kind = "shuffled" if whole else "sampler"
    _check(sampler)
    return EpochOrder(kind, sampler, batch_size, drop_last, lists=batches is not None)


def _check(sampler: Any) -> None:
    """Refuse samplers that cannot be sharded."""
    for candidate in (sampler, getattr(sampler, "sampler", None)):
        if isinstance(candidate, DistributedSampler) or getattr(candidate, "num_replicas", 1) != 1:
            raise UsageError(
                f"expected a sampler of all samples, found {type(candidate).__name__}, which "
                f"shards over ranks by itself; sharding twice would lose data. Pass a sampler "
                f"that gives every index: trainkit takes this rank's part of them."
            )
    if not hasattr(sampler, "__len__"):
        raise UsageError(
            f"expected a sampler with a length, found {type(sampler).__name__} without __len__. "
            f"An epoch has to end: give it __len__, or use an IterableDataset for a stream."
        )
