import logging
import random
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from trainkit.data.torch import ShardedDataLoader
from trainkit.errors import UsageError


class Count(IterableDataset):
    """The numbers up to a length that it does not tell."""

    def __init__(self, length):
        self.length = length

    def __iter__(self):
        return iter(range(self.length))


class Sized(Count):
    def __len__(self):
        return self.length


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_order_and_batches_are_those_of_a_map_style_dataset(shards, numbers, batches, num_workers):
    for length in (0, 5, 12, 13, 16, 17):
        for train in (True, False):
            expected = [
                batches(loader) if length else []
                for loader in shards(3, numbers(max(length, 3)), 2, train=train)
            ]
            loaders = shards(3, Count(length), 2, train=train, num_workers=num_workers)
            assert [batches(loader) for loader in loaders] == expected


def test_drop_last_leaves_full_batches(shards, batches):
    loaders = shards(2, Count(11), 2, drop_last=True)
    assert [batches(loader) for loader in loaders] == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    with pytest.raises(UsageError, match="contradicts train=False"):
        shards(1, Count(11), 2, drop_last=True, train=False)


def test_a_stream_trains_by_default_and_has_the_length_of_its_dataset(shards):
    (loader,) = shards(1, Sized(11), 2)
    assert loader.train
    assert len(loader) == 6
    with pytest.raises(TypeError, match="Count has no __len__"):
        len(shards(1, Count(11), 2)[0])


def test_a_dataset_that_shards_by_worker_itself_loses_nothing(shards, samples):
    class Own(Count):
        def __iter__(self):
            info = get_worker_info()
            first, step = (info.id, info.num_workers) if info else (0, 1)
            return iter(range(first, self.length, step))

    assert samples(shards(2, Own(24), 3, num_workers=2)) == list(range(24))


def test_workers_still_know_that_they_are_workers_when_they_collate(shards):
    def collate(items):
        return get_worker_info().id

    (loader,) = shards(1, Count(12), 3, num_workers=2, collate_fn=collate)
    assert list(loader) == [0, 1, 0, 1]


class Shuffled(IterableDataset):
    """Draws its order and an augmentation from the global generators."""

    def __iter__(self):
        order = list(range(24))
        random.shuffle(order)
        for number in order:
            yield number, np.random.rand(), torch.rand(())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_all_ranks_and_workers_see_one_order_that_differs_by_epoch(shards, num_workers):
    def epochs(loaders):
        return [[batch for loader in loaders for batch in loader] for _ in range(2)]

    for attempt in range(2):
        random.seed(attempt)
        loaders = shards(2, Shuffled(), 3, num_workers=num_workers)
        first, second = epochs(loaders)
        for epoch in (first, second):
            ids, ours, theirs = (torch.cat([batch[part] for batch in epoch]) for part in range(3))
            assert sorted(ids.tolist()) == list(range(24))
            assert len(set(ours.tolist())) == len(set(theirs.tolist())) == 24
        orders = [[batch[0].tolist() for batch in epoch] for epoch in (first, second)]
        assert orders[0] != orders[1]
        if attempt == 0:
            seen = orders
    assert orders == seen


def test_the_streams_random_numbers_do_not_disturb_the_users(shards):
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    def seed():
        random.seed(1), np.random.seed(1), torch.manual_seed(1)

    seed()
    expected = [draw() for _ in range(4)]
    seed()
    (loader,) = shards(1, Shuffled(), 6)
    assert [draw() for _ in loader] == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_is_continued_after_what_was_received(shards, batches, num_workers, caplog):
    def loader():
        return shards(1, Shuffled(), 4, num_workers=num_workers, collate_fn=numbers_of)[0]

    unbroken = loader()
    epochs = [batches(unbroken), batches(unbroken)]
    for stop in range(1, 7):
        broken = loader()
        assert batches(broken) == epochs[0]
        assert [b.tolist() for b in islice(broken, stop)] == epochs[1][:stop]
        again = loader()
        with caplog.at_level(logging.INFO):
            again.load_state_dict(broken.state_dict())
            assert batches(again) == epochs[1][stop:]
        assert again.epoch == 1
    assert "read up to item 4 to continue" in caplog.text


def numbers_of(items):
    return torch.tensor([item[0] for item in items])


def test_an_epoch_that_was_saved_at_its_end_is_empty(shards, batches):
    (loader,) = shards(1, Count(6), 2)
    batches(loader)
    (again,) = shards(1, Count(6), 2)
    again.load_state_dict(loader.state_dict())
    assert batches(again) == []
    assert batches(again) == [[0, 1], [2, 3], [4, 5]]


class Resumable(IterableDataset):
    """Knows its place, so nobody has to read up to it."""

    def __init__(self):
        self.place, self.read = 0, 0

    def __iter__(self):
        while self.place < 12:
            self.place += 1
            self.read += 1
            yield self.place
        self.place = 0

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stateful_dataset_goes_to_its_place_by_itself(shards, batches, num_workers):
    (loader,) = shards(1, Resumable(), 2)
    iterator = iter(loader)
    next(iterator), next(iterator)
    dataset = Resumable()
    (again,) = shards(1, dataset, 2, num_workers=num_workers)
    again.load_state_dict(loader.state_dict())
    assert again.state_dict()["consumed"] == 4
    first = batches(again)
    assert first == [[5, 6], [7, 8], [9, 10], [11, 12]]
    if num_workers == 0:
        assert dataset.read == 8
        assert batches(again) == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11, 12]]


def test_a_stateful_dataset_in_workers_is_read_up_to_its_place(shards, batches):
    (loader,) = shards(1, Resumable(), 2, num_workers=1)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    assert "dataset" not in state
    (again,) = shards(1, Resumable(), 2)
    again.load_state_dict(state)
    assert again.state_dict() == state  # the dataset is not at its place yet
    assert batches(again)[0] == [3, 4]


def test_a_stateful_dataset_starts_anew_after_a_finished_epoch(shards, batches):
    (loader,) = shards(1, Resumable(), 2)
    whole = batches(loader)
    (again,) = shards(1, Resumable(), 2)
    again.load_state_dict(loader.state_dict())
    assert [batches(again), batches(again)] == [[], whole]


class Told(IterableDataset):
    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter([self.epoch] * 4)


@pytest.mark.parametrize(
    "workers", [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}]
)
def test_the_dataset_is_told_the_epoch(shards, batches, workers):
    (loader,) = shards(1, Told(), 2, **workers)
    assert [batches(loader) for _ in range(3)] == [[[e, e], [e, e]] for e in range(3)]
    loader.load_state_dict(loader.state_dict() | {"epoch": 7, "consumed": 2, "finished": False})
    assert [batches(loader), batches(loader)] == [[[7, 7]], [[8, 8], [8, 8]]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_evaluated_stream_counts_every_item_once(num_workers):
    for batch_size in (2, None):
        rows = []
        loaders = [
            ShardedDataLoader(
                DataLoader(Count(13), batch_size, num_workers=num_workers),
                shard=(rank, 4),
                train=False,
            )
            for rank in range(4)
        ]
        counts = set()
        for loader in loaders:
            count = 0
            for batch in loader:
                rows += torch.as_tensor(batch).reshape(-1)[loader.mask].tolist()
                count += 1
            counts.add(count)
        assert sorted(rows) == list(range(13))
        assert len(counts) == 1
