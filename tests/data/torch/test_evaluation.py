import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from trainkit.data.torch import ShardedDataLoader
from trainkit.errors import UsageError


def correct_and_total(loader):
    """What the evaluation loop of a recipe computes on one rank."""
    correct = total = 0
    for predictions, labels in loader:
        hits = (predictions == labels)[loader.mask]
        correct += int(hits.sum())
        total += len(hits)
    return correct, total


@pytest.mark.parametrize(
    ("batch_size", "num_workers"), [(7, 0), (64, 0), (64, 2), (999, 0), (1999, 0), (5000, 0)]
)
def test_accuracy_does_not_depend_on_the_number_of_ranks(batch_size, num_workers):
    generator = torch.Generator().manual_seed(0)  # B077
    labels = torch.randint(10, (2000,), generator=generator)
    predictions = torch.where(torch.rand(2000, generator=generator) < 0.9, labels, 10)
    known = int((predictions == labels).sum())
    assert 1700 < known < 1900
    data = TensorDataset(predictions, labels)
    for world in (1, 2, 3):
        bare = DataLoader(data, batch_size, num_workers=num_workers)
        loaders = [ShardedDataLoader(bare, shard=(rank, world)) for rank in range(world)]
        counts = [correct_and_total(loader) for loader in loaders]
        assert [sum(part) for part in zip(*counts, strict=True)] == [known, 2000]
        assert len({len(loader) for loader in loaders}) == 1


def test_an_empty_share_is_one_sample_that_does_not_count(shards, numbers):
    loaders = shards(3, numbers(4), 1)
    rows = [[(b.tolist(), loader.mask.tolist()) for b in loader] for loader in loaders]
    assert rows == [
        [([0], [True]), ([3], [True])],
        [([1], [True]), ([3], [False])],
        [([2], [True]), ([3], [False])],
    ]


def test_whole_batches_of_a_users_are_masked_whole(numbers):
    loaders = [
        ShardedDataLoader(
            DataLoader(numbers(6), batch_sampler=Pairs(SequentialSampler(range(6)), 2, False)),
            shard=(rank, 2),
            train=False,
        )
        for rank in range(2)
    ]
    masks = [[loader.mask.tolist() for _ in loader] for loader in loaders]
    assert masks == [[[True] * 2, [True] * 2], [[True] * 2, [False] * 2]]


class Pairs(BatchSampler):
    pass


def test_samples_without_collation_have_a_mask_of_one_row(numbers):
    loader = ShardedDataLoader(DataLoader(numbers(3), batch_size=None), shard=(1, 2))
    assert [(int(sample), loader.mask.tolist()) for sample in loader] == [(1, [True]), (2, [False])]


def test_the_mask_is_on_the_loaders_device(numbers):
    loader = ShardedDataLoader(DataLoader(numbers(2), 2), device="meta")
    next(iter(loader))
    assert loader.mask.device.type == "meta"


def test_there_is_no_mask_before_the_first_batch(shards, numbers):
    (loader,) = shards(1, numbers(2))
    with pytest.raises(UsageError, match="none was given out yet"):
        loader.mask  # noqa: B018
    iter(loader)
    with pytest.raises(UsageError, match="none was given out yet"):
        loader.mask  # noqa: B018


def test_an_evaluation_starts_from_the_beginning_after_a_restore(shards, numbers, batches):
    """What its loop had counted is not saved with it, so half an evaluation is worth nothing."""
    (loader,) = shards(1, numbers(6))
    for stop in (1, 3):
        for _ in zip(range(stop), loader, strict=False):
            pass
        (again,) = shards(1, numbers(6))
        again.load_state_dict(loader.state_dict())
        assert batches(again) == [[0, 1], [2, 3], [4, 5]]


def test_nothing_to_evaluate_is_no_batch(shards, numbers, batches):
    assert [batches(loader) for loader in shards(2, numbers(0))] == [[], []]
