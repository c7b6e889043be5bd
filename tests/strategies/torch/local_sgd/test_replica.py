"""A worker's copy of what servers hold, and a server's part of it, over some rounds."""

import pytest
import torch

from trainkit.strategies.torch.local_sgd.layout import FlatLayout
from trainkit.strategies.torch.local_sgd.replica import Replica
from trainkit.strategies.torch.local_sgd.shard import OuterOptions, Shard, as_bytes, as_tensor


class Net(torch.nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3, dtype=dtype))
        self.register_buffer("mask", torch.full((2, 2), float("-inf")).triu(1), persistent=False)
        self.register_buffer("average", torch.zeros(2))


def started(nets, **options):
    """Replicas of ``nets`` on one server with averaging, and its shard."""
    replicas = [Replica(FlatLayout([net]), 1) for net in nets]
    for replica in replicas:
        replica.take_model({}, moving=False)
    _, outer, payloads = replicas[0].part(0)
    options = OuterOptions(lr=1.0, momentum=0.0, **options)
    return replicas, Shard(as_tensor(payloads[0]).clone(), outer, options)


def end_round(replicas, shard):
    wire = shard.options.wire
    sent = as_bytes(shard.step([replica.delta(wire)[0] for replica in replicas]))
    for replica in replicas:
        replica.take_round(0, sent, wire)
        replica.give_model()


@pytest.mark.parametrize("wire", ["fp32", "bf16"])
def test_a_mask_of_infinities_stays_one(wire):
    nets = [Net(), Net()]
    replicas, shard = started(nets, wire=wire)
    nets[0].average += 2
    end_round(replicas, shard)
    for net in nets:
        assert net.mask.tolist() == [[0.0, float("-inf")], [0.0, 0.0]]
        assert net.average.tolist() == [1.0, 1.0]


def test_steps_too_small_for_the_models_numbers_add_up_on_the_servers():
    """Half a unit in the last place of bf16 a round, as the mean of one and none."""
    nets = [Net(torch.bfloat16), Net(torch.bfloat16)]
    replicas, shard = started(nets)
    for _ in range(8):
        with torch.no_grad():
            nets[0].weight += 2**-7
        end_round(replicas, shard)
    assert nets[1].weight.tolist() == [1 + 8 * 2**-8] * 3


def test_a_buffer_that_the_model_makes_anew_is_averaged_too():
    nets = [Net(), Net()]
    replicas, shard = started(nets)
    nets[0].average = nets[0].average + 2
    end_round(replicas, shard)
    assert nets[0].average.tolist() == nets[1].average.tolist() == [1.0, 1.0]
