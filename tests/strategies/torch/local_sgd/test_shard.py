"""The outer step: by its definition, and by what the workers are told of it."""

import pytest
import torch

from trainkit.errors import UsageError
from trainkit.strategies.torch.local_sgd.shard import (
    OuterOptions,
    Shard,
    as_bytes,
    as_tensor,
)


def vectors(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) for _ in range(count)]


def sent(tensor):
    """As it arrives: in memory of its own."""
    return as_bytes(tensor.clone())


def test_averaging_gives_the_mean_of_what_workers_have():
    base, one, two = vectors(3, 11)
    shard = Shard(base.clone(), 11, OuterOptions(lr=1.0, momentum=0.0))
    shard.step([sent(base - one), sent(base - two)])
    torch.testing.assert_close(shard.parameters, (one + two) / 2)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_is_that_of_the_paper(nesterov):
    """DiLoCo's outer step (arXiv 2311.08105, algorithm 1, with section 2's optimizers)."""
    base = vectors(1, 7)[0]
    options = OuterOptions(lr=0.7, momentum=0.9, nesterov=nesterov)
    shard = Shard(base.clone(), 7, options)
    expected, velocity = base.clone(), torch.zeros(7)
    for number in range(5):
        deltas = vectors(3, 7, seed=number)
        shard.step([sent(delta) for delta in deltas])
        mean = sum(deltas) / 3
        velocity = 0.9 * velocity + mean
        expected -= 0.7 * (mean + 0.9 * velocity if nesterov else velocity)
    torch.testing.assert_close(shard.parameters, expected)
    torch.testing.assert_close(shard.momentum, velocity)


def test_what_is_not_trained_is_averaged_without_momentum():
    base, delta = vectors(2, 6)
    shard = Shard(base.clone(), 4, OuterOptions())
    for _ in range(3):
        shard.step([sent(delta)])
    torch.testing.assert_close(shard.parameters[4:], base[4:] - 3 * delta[4:])
    assert shard.momentum.shape == (4,)


def test_a_shard_goes_on_from_its_parameters_and_momentum():
    base, *deltas = vectors(6, 5)
    whole = Shard(base.clone(), 5, OuterOptions())
    for delta in deltas[:3]:
        whole.step([sent(delta)])
    again = Shard(whole.parameters.clone(), 5, OuterOptions(), whole.momentum.clone())
    for delta in deltas[3:]:
        whole.step([sent(delta)])
        again.step([sent(delta)])
    assert torch.equal(whole.parameters, again.parameters)


def test_with_bf16_workers_have_what_was_sent_and_rounding_does_not_add_up():
    base = vectors(1, 1000)[0] * 100
    shard = Shard(base.clone(), 1000, OuterOptions(lr=1.0, momentum=0.0, wire="bf16"))
    exact, worker = base.double(), base.clone()
    for number in range(200):
        delta = vectors(1, 1000, seed=number)[0].to(torch.bfloat16)
        worker += as_tensor(as_bytes(shard.step([as_bytes(delta)])), "bf16")
        exact -= delta.double()
    assert torch.equal(worker, shard.parameters)
    # One change is rounded to 8 bits; 200 of them are not off by more than one is.
    assert (worker.double() - exact).abs().max() < 2**-8 * 8


def test_a_shard_may_be_empty():
    shard = Shard(torch.empty(0), 0, OuterOptions())
    assert shard.step([memoryview(b""), memoryview(b"")]).numel() == 0


@pytest.mark.parametrize(
    "values", [{"lr": 0.0}, {"lr": -1.0}, {"momentum": 1.0}, {"momentum": -0.1}, {"wire": "fp8"}]
)
def test_what_cannot_be_meant_is_an_error_that_names_it(values):
    with pytest.raises(UsageError, match=str(next(iter(values.values())))):
        OuterOptions(**values)
