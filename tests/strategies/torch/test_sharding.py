"""What cannot train sharded is refused before anything is changed, with what to do."""

import gc

import pytest

from trainkit.coordination import Communicator
from trainkit.errors import StrategyError

torch = pytest.importorskip("torch")

from tests.strategies.torch.models import Block, Net  # noqa: E402
from trainkit.strategies.torch.blocks import find_blocks  # noqa: E402
from trainkit.strategies.torch.sharding import refuse_what_cannot_be_sharded  # noqa: E402

nn = torch.nn


class Ranks(Communicator):
    """Two ranks of the same mind."""

    def __init__(self):
        super().__init__(Communicator.solo().store, 0, 2, timeout=1.0)

    def all_gather_object(self, value, **_):
        return [value, value]


def refuse(model, blocks=None, communicator=None):
    found = find_blocks(model, blocks)
    refuse_what_cannot_be_sharded(model, found, communicator or Communicator.solo())


def tied(one, other):
    other.weight = one.weight


def scalar():
    net = Net()
    net.temperature = nn.Parameter(torch.tensor(1.0))
    return net


def half():
    net = Net()
    net.blocks[1].up.half()
    return net


def meta_buffer():
    net = Net()
    net.register_buffer("positions", torch.empty(3, device="meta"))
    return net


def tied_blocks():
    net = Net()
    tied(net.blocks[0].up, net.blocks[2].up)
    return net


def tied_to_a_block():
    net = Net()
    net.extra = nn.Linear(12, 21)
    tied(net.extra, net.blocks[1].up)
    return net


def shared_inside_of_blocks():
    net = Net()
    net.blocks[2].down = net.blocks[1].down
    return net


REFUSED = {
    "on meta": (lambda: nn.Linear(2, 2, device="meta"), r"weight is on the meta device"),
    "a buffer on meta": (meta_buffer, r"positions is on the meta device"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(2)), r"0\.weight belongs to a lazy module"),
    "scalar": (scalar, r"temperature is a scalar.*shape \(1,\)"),
    "channels_last": (
        lambda: nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last),
        r"weight is not contiguous",
    ),
    "sparse": (lambda: nn.Sequential(nn.Embedding(5, 4, sparse=True)), r"0 has sparse gradients"),
    "two types": (half, r"blocks\.1 are of torch\.float16 and torch\.float32"),
    "tied blocks": (tied_blocks, r"blocks\.0\.up\.weight and blocks\.2\.up\.weight are one"),
    "tied to a block": (tied_to_a_block, r"blocks\.1\.up\.weight and extra\.weight are one"),
    "shared in blocks": (shared_inside_of_blocks, r"blocks\.1\.down\.weight and blocks\.2\.down"),
    "in DataParallel": (lambda: nn.DataParallel(nn.Linear(2, 2)), r"the model is wrapped in Data"),
    "in torch.compile": (
        lambda: nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager")),
        r"0 was compiled.*model\.compile\(\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_its_name(name):
    make, words = REFUSED[name]
    with pytest.raises(StrategyError, match=words):
        refuse(make())


def tied_outside():
    net = Net()
    net.embedding, net.head = nn.Embedding(7, 12), nn.Linear(12, 7, bias=False)
    tied(net.embedding, net.head)
    return net


def block_twice():
    net = Net()
    net.blocks.append(net.blocks[0])
    return net


def frozen_half():
    net = half()
    net.blocks[1].up.requires_grad_(False)
    return net


@pytest.mark.parametrize(
    "make",
    [Net, tied_outside, block_twice, frozen_half, lambda: nn.Linear(1, 1)],
    ids=["plain", "tied outside of blocks", "a block used twice", "frozen in fp16", "tiny"],
)
def test_what_works_is_taken(make):
    refuse(make())


def test_weights_tied_over_two_layers_of_one_block_are_taken():
    net = Net()
    tied(net.blocks[0].up, net.blocks[2].up)
    refuse(net, blocks=["ModuleList"])


def test_running_statistics_are_refused_with_several_ranks():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    refuse(model)
    with pytest.raises(StrategyError, match=r"1 is a BatchNorm1d.*strategy='ddp'"):
        refuse(model, communicator=Ranks())
    model = nn.Sequential(nn.InstanceNorm1d(2, track_running_stats=True))
    with pytest.raises(StrategyError, match="0 is a InstanceNorm1d"):
        refuse(model, communicator=Ranks())
    for quiet in (nn.BatchNorm1d(2, track_running_stats=False), nn.InstanceNorm1d(2)):
        refuse(nn.Sequential(quiet), communicator=Ranks())
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    refuse(nn.SyncBatchNorm.convert_sync_batchnorm(model), communicator=Ranks())


def test_an_optimizer_made_before_is_refused():
    net = Net()
    optimizer = torch.optim.AdamW([{"params": net.blocks.parameters()}, {"params": net.last.bias}])
    with pytest.raises(StrategyError, match=r"optimizer \(AdamW\) was made before ctx\.setup"):
        refuse(net)
    refuse(Net())
    assert optimizer.param_groups


def test_also_one_of_the_users_own_class():
    class Mine(torch.optim.SGD):
        pass

    net = nn.Linear(2, 2)
    optimizer = Mine(net.parameters(), lr=1.0)
    with pytest.raises(StrategyError, match=r"optimizer \(Mine\)"):
        refuse(net)
    assert optimizer.param_groups


def test_one_that_is_gone_is_not():
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer.itself = optimizer  # a cycle, as with a scheduler: only the collector frees it
    gc.disable()
    try:
        del optimizer
        refuse(net)
    finally:
        gc.enable()


def test_blocks_of_one_class_in_the_model():
    refuse(Net(), blocks=[Block, "Linear"])
