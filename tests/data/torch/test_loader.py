import logging

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from trainkit.data.torch import ShardedDataLoader
from trainkit.errors import DataError, UsageError


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_share_an_epoch_without_overlap(shards, numbers, samples, num_workers):
    loaders = shards(2, numbers(20), 3, shuffle=True, num_workers=num_workers)
    assert samples(loaders) == list(range(20))


def test_every_epoch_has_another_order_with_nothing_to_call(shards, numbers, batches):
    (loader,) = shards(1, numbers(64), 64, shuffle=True)  # B076
    first, second, third = batches(loader), batches(loader), batches(loader)
    assert loader.epoch == 2
    assert first != second != third != first
    assert sorted(first[0]) == sorted(second[0]) == list(range(64))
    (again,) = shards(1, numbers(64), 64, shuffle=True)
    assert [batches(again), batches(again)] == [first, second]
    (other,) = shards(1, numbers(64), 64, shuffle=True, seed=1)
    assert batches(other) != first


def test_one_rank_with_twice_the_batch_sees_the_same_global_batches(shards, numbers, batches):
    (one,) = shards(1, numbers(20), 10, shuffle=True)
    two = [batches(loader) for loader in shards(2, numbers(20), 5, shuffle=True)]
    assert batches(one) == [first + second for first, second in zip(*two, strict=True)]


def test_the_order_does_not_touch_the_global_generators(shards, numbers, batches):
    (loader,) = shards(1, numbers(8), 2, shuffle=True)
    before = torch.get_rng_state()
    batches(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_remainder_smaller_than_the_world_is_dropped_with_a_note(
    shards, numbers, samples, caplog
):
    with caplog.at_level(logging.INFO):
        loaders = shards(3, numbers(11), 2, shuffle=True)
    assert "the last 2 of 11 samples of each epoch are dropped" in caplog.text
    assert len(samples(loaders)) == 9


def test_drop_last_leaves_full_batches(shards, numbers, batches):
    loaders = shards(2, numbers(11), 2, drop_last=True)
    assert [batches(loader) for loader in loaders] == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    assert [len(loader) for loader in loaders] == [2, 2]


@pytest.mark.parametrize(("arguments", "least"), [({"shuffle": True}, 3), ({"drop_last": True}, 6)])
def test_training_without_a_single_batch_is_an_error(shards, numbers, arguments, least):
    with pytest.raises(DataError, match=f"expected {least} samples or more .* found 2"):
        shards(3, numbers(2), 2, **arguments)


def test_length_is_that_of_a_whole_epoch_and_what_is_left_is_another_number(shards, numbers):
    (loader,) = shards(1, numbers(10), 2, shuffle=True)
    iterator = iter(loader)
    next(iterator)
    assert (len(loader), loader.batches_left) == (5, 4)


@pytest.mark.parametrize("batch_size", [2, None])
def test_batches_of_one_rank_are_those_of_the_bare_loader(numbers, batch_size):
    bare = DataLoader(numbers(5), batch_size)
    assert [b.tolist() for b in ShardedDataLoader(bare)] == [b.tolist() for b in bare]


def test_arguments_of_the_loader_are_kept(numbers):
    context = torch.multiprocessing.get_context("fork")
    generator = torch.Generator().manual_seed(3)
    bare = DataLoader(
        numbers(8),
        2,
        num_workers=1,
        collate_fn=list,
        timeout=17,
        prefetch_factor=5,
        persistent_workers=True,
        multiprocessing_context=context,
        generator=generator,
    )
    loader = ShardedDataLoader(bare)
    inner = loader._inner
    for name in ("collate_fn", "timeout", "prefetch_factor", "persistent_workers"):
        assert getattr(inner, name) == getattr(bare, name)
    assert inner.multiprocessing_context is context
    assert [[int(n) for n in batch] for batch in loader] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert generator.get_state().equal(torch.Generator().manual_seed(3).get_state())
    assert (loader.batch_size, loader.dataset, loader.num_workers) == (2, bare.dataset, 1)
    with pytest.raises(AttributeError):
        loader.nothing_of_the_kind  # noqa: B018


class Evens(Sampler):
    """Even numbers; the epoch it was told turns them round."""

    def __init__(self, length):
        self.length, self.epochs = length, []

    def __len__(self):
        return self.length // 2

    def __iter__(self):
        order = list(range(0, self.length, 2))
        return iter(order[::-1] if self.epochs[-1] % 2 else order)

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


def test_a_users_sampler_is_asked_each_epoch_and_sharded(shards, numbers, batches):
    loaders = shards(2, numbers(16), 2, sampler=(sampler := Evens(16)))
    assert [batches(loader) for loader in loaders] == [[[0, 2], [8, 10]], [[4, 6], [12, 14]]]
    assert [batches(loader) for loader in loaders] == [[[14, 12], [6, 4]], [[10, 8], [2, 0]]]
    assert sampler.epochs == [0, 0, 1, 1]
    assert loaders[0].train


def test_a_random_sampler_of_the_users_agrees_on_all_ranks(shards, numbers, batches):
    """Ranks draw from global generators in different states, and must not notice."""
    sampler = WeightedRandomSampler([1.0] * 50, 50)
    orders = []
    for attempt in range(2):
        torch.manual_seed(attempt)
        (loader,) = shards(1, numbers(50), 50, sampler=sampler)
        orders.append([batches(loader), batches(loader)])
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1]


def test_a_samplers_own_generator_is_seeded_and_left_as_it_was(shards, numbers, batches):
    orders = []
    for _ in range(2):
        generator = torch.Generator().manual_seed(5)
        torch.rand(3, generator=generator)
        state = generator.get_state()
        sampler = RandomSampler(range(50), replacement=True, generator=generator)
        (loader,) = shards(1, numbers(50), 50, sampler=sampler)
        orders.append([batches(loader), batches(loader)])
        assert generator.get_state().equal(state)
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1]


def test_a_users_batches_are_dealt_whole(numbers, batches):
    class Uneven(BatchSampler):
        def __init__(self):
            self.sampler = SequentialSampler(range(9))

        def __len__(self):
            return 4

        def __iter__(self):
            yield from ([0, 1, 2], [3], [4, 5], [6, 7, 8])

    loaders = [
        ShardedDataLoader(DataLoader(numbers(9), batch_sampler=Uneven()), shard=(rank, 2))
        for rank in range(2)
    ]
    assert [batches(loader) for loader in loaders] == [[[0, 1, 2], [4, 5]], [[3], [6, 7, 8]]]


def test_a_plain_batch_sampler_is_taken_apart(numbers, batches):
    sampler = BatchSampler(SequentialSampler(range(8)), 2, drop_last=True)
    loader = ShardedDataLoader(DataLoader(numbers(8), batch_sampler=sampler), shard=(1, 2))
    assert batches(loader) == [[2, 3], [6, 7]]


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_distributed_sampler_is_replaced_with_a_warning(numbers, samples, shuffle, caplog):
    loaders = [
        ShardedDataLoader(
            DataLoader(
                numbers(7), 2, sampler=DistributedSampler(numbers(7), 2, rank, shuffle=shuffle)
            ),
            shard=(rank, 2),
        )
        for rank in range(2)
    ]
    assert f"pass shuffle={shuffle}" in caplog.text
    assert [loader.train for loader in loaders] == [shuffle, shuffle]
    assert len(set(samples(loaders))) == (6 if shuffle else 7)


def test_samplers_that_cannot_be_sharded_are_refused(numbers):
    class Mine(DistributedSampler):
        pass

    mine = Mine(numbers(8), 2, 0)
    with pytest.raises(UsageError, match="found Mine, which shards over ranks by itself"):
        ShardedDataLoader(DataLoader(numbers(8), 2, sampler=mine))
    with pytest.raises(UsageError, match="shards over ranks by itself"):
        ShardedDataLoader(DataLoader(numbers(8), batch_sampler=BatchSampler(mine, 2, False)))

    with pytest.raises(UsageError, match="found generator without __len__"):
        ShardedDataLoader(DataLoader(numbers(8), 2, sampler=(i for i in range(8))))


def test_something_else_than_a_loader_is_refused(numbers):
    with pytest.raises(UsageError, match=r"a torch\.utils\.data\.DataLoader, found Numbers"):
        ShardedDataLoader(numbers(3))


def test_train_is_decided_by_the_loader_unless_said(numbers):
    def train(said=None, **arguments):
        return ShardedDataLoader(DataLoader(numbers(8), 2, **arguments), train=said).train

    assert not train()
    assert train(shuffle=True)
    assert train(drop_last=True)
    assert train(sampler=Evens(8))
    assert train(said=True)
    assert not train(said=False, shuffle=True)
    with pytest.raises(UsageError, match="drop_last=True contradicts train=False"):
        train(said=False, drop_last=True)


def test_batches_are_moved_to_the_device_and_left_alone_on_the_cpu():
    data = TensorDataset(torch.arange(4), torch.ones(4))
    moved = list(ShardedDataLoader(DataLoader(data, 2), device="meta"))
    assert [part.device.type for batch in moved for part in batch] == ["meta"] * 4
    given = [object(), object()]
    kept = ShardedDataLoader(DataLoader(data, 2, collate_fn=lambda _: given))
    assert all(batch is given for batch in kept)


def test_a_long_order_is_kept_as_a_tensor(shards, numbers, samples, monkeypatch):
    monkeypatch.setattr("trainkit.data.torch.order._LIST_LIMIT", 10)
    assert samples(shards(2, numbers(20), 3, shuffle=True)) == list(range(20))


def test_batches_out_of_order_are_put_in_order(shards, numbers, batches, caplog):
    (loader,) = shards(1, numbers(8), 2, num_workers=1, in_order=False)
    assert "in_order=False is not used" in caplog.text
    assert batches(loader) == [[0, 1], [2, 3], [4, 5], [6, 7]]
