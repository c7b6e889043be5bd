"""A rank's part of a ``DataLoader``: sharded, reshuffled, resumable, on the right device."""

import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate

from trainkit.data.position import SamplePosition, Shard
from trainkit.data.seeds import derive_seed
from trainkit.data.torch.batched import collate_batched
from trainkit.data.torch.device import mover
from trainkit.data.torch.iteration import Iteration
from trainkit.data.torch.saved import FORMAT, check_same_data
from trainkit.data.torch.sources import length_of, source_of
from trainkit.data.torch.workers import WorkerStart
from trainkit.errors import DataError, UsageError

__all__ = ["ShardedDataLoader"]

log = logging.getLogger(__name__)


class ShardedDataLoader:
    """Iterates over one rank's part of a user's ``DataLoader``.

    Each iteration is one epoch, and every epoch is shuffled anew if the loader shuffles. An
    epoch ends when the next iteration starts: a state saved after the last batch still belongs
    to the epoch, and the first iteration after ``load_state_dict`` continues the saved epoch
    even if nothing of it is left.

    Training drops what cannot be split evenly over the ranks at the end of an epoch, fewer
    samples than ranks. Evaluation neither drops nor pads; see ``mask``. An evaluation always
    starts from the beginning: what the user's loop had counted before is not saved with it.

    Attributes of the user's loader (``dataset``, ``batch_size``, …) can be read here too.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        *,
        shard: tuple[int, int] = (0, 1),
        seed: int = 0,
        device: torch.device | str = "cpu",
        train: bool | None = None,
    ) -> None:
        """Take over ``loader``, which stays as it is.

        Args:
            loader: its batch size is per rank; all its arguments keep their meaning.
            shard: index and count of this rank's part.
            seed: of the order of each epoch and of the workers' random generators.
            device: where batches are moved; the CPU leaves them untouched.
            train: True holds to the rules of training, False to those of evaluation. By
                default a loader that shuffles, drops the last batch, has a sampler of the
                user's or reads a stream trains, and a plain sequential one evaluates.

        Raises:
            UsageError: the loader cannot be sharded, or its arguments contradict ``train``.
            DataError: training would have no batch.
        """
        if not isinstance(loader, DataLoader):
            raise UsageError(
                f"expected a torch.utils.data.DataLoader, found {type(loader).__name__}"
            )
        self._loader = loader
        self._shard = Shard(*shard)
        self._device = torch.device(device)
        self._move = mover(self._device, non_blocking=loader.pin_memory)
        self._source = source_of(loader, self._shard, seed, train)
        self._position = SamplePosition(seed)
        self._iteration: Iteration | None = None
        self._over = False
        self._worker_generator = torch.Generator()
        self._worker_start = WorkerStart(loader.worker_init_fn)
        self._inner = self._rank_loader()
        self._introduce()

    @property
    def epoch(self) -> int:
        """The epoch, from 0, of the current iteration or of the one to be continued."""
        return self._position.epoch

    @property
    def train(self) -> bool:
        """Whether the rules of training hold, or those of evaluation."""
        return self._source.train

    @property
    def mask(self) -> torch.Tensor:
        """Which rows of the current batch count: bool [rows], on the loader's device.

        All do, except on a rank whose share of the last global batch of an evaluation is
        empty: it gets one sample that does not count, so that all ranks have as many batches.

        Raises:
            UsageError: there is no current batch.
        """
        if self._iteration is None or not self._iteration.received:
            raise UsageError("loader.mask belongs to a batch, and none was given out yet")
        rows, counting = self._iteration.rows(whole_batches=self._source.whole_batches)
        return torch.full((rows,), counting > 0, device=self._device)

    @property
    def batches_left(self) -> int:
        """Batches on each rank that are left of the current or continued epoch.

        Raises:
            TypeError: the dataset is a stream of unknown length.
        """
        return 0 if self._is_over() else self._num_batches(self._consumed())

    def __len__(self) -> int:
        """Batches on each rank in a whole epoch, also while one is being continued.

        Raises:
            TypeError: the dataset is a stream of unknown length.
        """
        return self._num_batches(0)

    def __iter__(self) -> Iterator[Any]:
        if self._iteration is not None:
            self._position = self._position.next_epoch()
            self._over = False
        iteration = self._source.begin(self._position, over=self._over)
        self._iteration = iteration
        if iteration.finished:
            return iter(())  # an epoch that was saved after its last batch; no workers for it
        return self._source.batches(iteration, self._start(), self._move)

    def state_dict(self) -> dict[str, Any]:
        """The position after the batch that the user's loop received last.

        It is the same on all ranks, and what workers have loaded ahead does not count.

        Returns:
            Plain numbers and strings, fit for JSON (and the dataset's own state if it is a
            stream that has one).
        """
        return {
            "format": FORMAT,
            "seed": self._position.seed,
            "epoch": self._position.epoch,
            "consumed": self._consumed() if self.train else 0,
            "finished": self._is_over() if self.train else False,
            "length": self._source.length(),
            "dataset_length": length_of(self._loader.dataset),
            "batch_size": self._source.batch_size,
            "world_size": self._shard.count,
            "order": self._source.order,
            "train": self.train,
            **(self._source.state() if self.train else {}),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the next iteration continue the saved epoch.

        Another number of ranks or another batch size is fine: positions count samples.

        Raises:
            DataError: this is no state of a loader.
            EnvironmentFaultError: seed, dataset or order differ; the message names how.
        """
        check_same_data(state_dict, self.state_dict())
        self._position = SamplePosition(
            self._position.seed, int(state_dict["epoch"]), int(state_dict["consumed"])
        )
        self._over = bool(state_dict["finished"])
        self._iteration = None
        self._inner._iterator = None  # persistent workers know only how to go on
        self._source.restore(state_dict)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not yet set, or asked for by copy and pickle
            raise AttributeError(name)
        return getattr(self._loader, name)

    def _consumed(self) -> int:
        return self._position.consumed if self._iteration is None else self._iteration.consumed

    def _is_over(self) -> bool:
        return self._over if self._iteration is None else self._iteration.finished

    def _num_batches(self, consumed: int) -> int:
        plan = self._source.plan(consumed)
        if plan is None:
            raise TypeError(
                f"{type(self._loader.dataset).__name__} has no __len__, so the number of batches "
                f"is not known"
            )
        return plan.num_batches

    def _rank_loader(self) -> DataLoader[Any]:
        """The user's loader with this rank's samples in place of all samples.

        A copy keeps every argument, those of subclasses and of later torch too. DataLoader
        forbids to assign some of them, because its own iterators may have them already.
        """
        loader = self._loader
        standard = loader.collate_fn is default_collate
        changes = self._source.arguments(collate_batched if standard else loader.collate_fn)
        changes |= {"generator": self._worker_generator, "_iterator": None}
        changes["_IterableDataset_len_called"] = None
        if loader.num_workers:
            changes["worker_init_fn"] = self._worker_start
        if not loader.in_order:
            log.warning("in_order=False is not used: a position in the data needs batches in order")
            changes["in_order"] = True
        inner = copy.copy(loader)
        vars(inner).update(changes)
        return inner

    def _start(self) -> Iterator[Any]:
        if not self._loader.num_workers:
            return iter(self._inner)
        self._seed_workers()
        with self._worker_start.starting():
            return iter(self._inner)

    def _seed_workers(self) -> None:
        """Seed what torch derives each worker's python, numpy and torch seeds from.

        A generator of our own: torch's global one is not touched, so starting an iteration
        does not change the user's random numbers, and a resumed run draws as an unbroken one.
        """
        own = self._loader.generator.initial_seed() if self._loader.generator is not None else 0
        place = self._position
        self._worker_generator.manual_seed(
            derive_seed(place.seed, "workers", own, place.epoch, place.consumed, self._shard.index)
        )

    def _introduce(self) -> None:
        """Say what an epoch is, and refuse one that would be empty without anybody noticing."""
        plan = self._source.plan(0)
        if plan is None:
            return
        if self.train and not plan.num_batches:
            least = plan.global_batch if plan.drop_last else plan.shard.count
            raise DataError(
                f"expected {least} samples or more for one batch on each of {plan.shard.count} "
                f"rank(s), found {plan.length}: training would do nothing. Use more data, a "
                f"smaller batch or fewer ranks"
                + (", or drop_last=False." if plan.drop_last else ".")
            )
        if self._shard.index == 0 and plan.dropped:
            log.info(
                "the last %d of %d samples of each epoch are dropped: they do not divide over "
                "%d rank(s)%s",
                plan.dropped,
                plan.length,
                plan.shard.count,
                " in full batches (drop_last=True)" if plan.drop_last else "",
            )
