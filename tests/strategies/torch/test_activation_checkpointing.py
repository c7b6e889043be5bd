import copy

import pytest

from trainkit.errors import StrategyError

torch = pytest.importorskip("torch")

from tests.strategies.torch.models import Net  # noqa: E402
from trainkit.strategies.torch.activation_checkpointing import checkpoint_activations  # noqa: E402
from trainkit.strategies.torch.blocks import find_blocks  # noqa: E402


def recomputing(dropout=0.0, blocks=None):
    net = Net(dropout)
    checkpoint_activations(net, find_blocks(net, blocks))
    return net


def kept_for_backward(net):
    """Bytes of the tensors that autograd holds after a forward pass, weights aside."""
    own = {p.data_ptr() for p in net.parameters()}
    held = {}

    def keep(tensor):
        if tensor.data_ptr() not in own:
            held[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = net(torch.randn(256, 5)).sum()
    total = sum(held.values())
    loss.backward()
    return total


def test_fewer_activations_are_kept():
    """A block of width 12 and 21 keeps its input, 12 numbers a row, in place of 80 or so."""
    assert kept_for_backward(recomputing()) < 0.35 * kept_for_backward(Net())


def test_names_of_parameters_do_not_change():
    assert recomputing().state_dict().keys() == Net().state_dict().keys()


def test_without_gradients_a_block_runs_once():
    net = recomputing()
    with torch.no_grad():
        net(torch.ones(1, 5))
    assert [block.calls for block in net.blocks] == [1, 1, 1]


def test_a_block_inside_of_another_is_computed_again_with_it():
    net = recomputing(blocks=["ModuleList", "Block"])
    inner = [name for name, module in net.named_modules() if "forward" in vars(module)]
    assert inner == ["blocks"]


def test_a_deep_copy_computes_with_its_own_weights():
    net = recomputing()
    copied = copy.deepcopy(net)
    with torch.no_grad():
        copied.blocks[0].down.bias.fill_(100.0)
    x = torch.ones(1, 5)
    assert not torch.allclose(net(x), copied(x))
    assert torch.equal(net(x), net(x))


def test_bf16_is_that_of_the_first_time():
    from trainkit.strategies.torch.precision import apply_precision

    net = recomputing()
    apply_precision(net, "bf16", "cpu")
    net(torch.ones(2, 5)).sum().backward()
    assert [block.calls for block in net.blocks] == [2, 2, 2]
    assert net.blocks[0].seen is torch.bfloat16


def test_a_model_without_blocks_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(StrategyError, match=r"Sequential has no repeated blocks.*blocks=\["):
        checkpoint_activations(model, find_blocks(model))
