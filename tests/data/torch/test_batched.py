import torch
from torch.utils.data import default_collate

from trainkit.data.torch.batched import Batched, collate_batched


def batch():
    return Batched(torch.arange(6.0).view(3, 2), torch.tensor([7, 8, 9]))


def test_it_looks_like_a_list_of_samples_to_any_collation():
    samples = list(batch())
    assert len(batch()) == len(samples) == 3
    assert samples[1][0].tolist() == [2.0, 3.0]
    assert samples[1][1] == 8
    assert type(samples[1][1]) is int
    assert [sample[1] for sample in batch()[1:]] == [8, 9]
    assert isinstance(batch()[1:], Batched)


def test_taking_it_as_it_is_equals_torchs_collation():
    fast, slow = collate_batched(batch()), default_collate(batch())
    assert type(fast) is type(slow) is list
    assert all(torch.equal(one, other) for one, other in zip(fast, slow, strict=True))
    assert fast[1].dtype == slow[1].dtype


def test_other_samples_are_collated_by_torch():
    assert collate_batched([1, 2]).tolist() == [1, 2]
