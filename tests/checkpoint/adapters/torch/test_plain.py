"""What is taken from a module without asking it is what it would have said."""

import pytest
import torch

from trainkit.checkpoint.adapters.torch.plain import plain_sources, plain_tensors
from trainkit.checkpoint.adapters.torch.tensors import source
from trainkit.errors import UsageError


class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, 3))
        self.register_parameter("missing", None)
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("passing", torch.zeros(1), persistent=False)
        self.register_buffer("absent", None)


def nested():
    shared = torch.nn.Linear(3, 2)
    model = torch.nn.Sequential(Inner(), torch.nn.ModuleList([shared, Inner()]), shared)
    model.add_module("nothing", None)
    model.register_parameter("last", torch.nn.Parameter(torch.zeros(())))
    return model


def test_the_same_tensors_in_the_same_order_as_torch():
    model = nested()
    expected = model.state_dict(keep_vars=True)
    found = plain_tensors(model)
    assert list(found) == list(expected)
    assert all(found[name] is expected[name] for name in expected)


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        torch.nn.DataParallel,
        lambda model: torch.nn.Sequential(torch.nn.DataParallel(torch.compile(model)), Inner()),
    ],
    ids=["compiled", "parallel", "both, as a child"],
)
def test_names_are_without_wrappers(wrap):
    wrapped = wrap(nested())
    names = [n.replace("module.", "").replace("_orig_mod.", "") for n in wrapped.state_dict()]
    assert list(plain_tensors(wrapped)) == names


def test_a_module_that_holds_itself_is_left_to_torch():
    model = nested()
    model.add_module("itself", model)
    assert plain_tensors(model) is None
    with pytest.raises(RecursionError):
        model.state_dict()


class Kind(torch.nn.Parameter):
    pass


def test_tensors_of_a_kind_of_their_own_are_left_to_torch():
    model = nested()
    model[0].weight = Kind(torch.ones(2, 3))
    assert plain_tensors(model) is None


def test_a_name_that_files_have_no_room_for_is_left_to_torch():
    model = nested()
    model.register_buffer("__metadata__", torch.zeros(1))
    assert plain_tensors(model) is None


def test_sources_say_the_same_as_one_alone():
    tensors = {
        "plain": torch.arange(6.0).view(2, 3),
        "turned": torch.arange(6).view(2, 3).T,
        "conjugated": torch.tensor([1 + 2j]).conj(),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(3.0, requires_grad=True),
    }
    found = plain_sources("model", tensors)
    for name, tensor in tensors.items():
        alone = source(tensor, name)
        assert (found[name].dtype, found[name].shape) == (alone.dtype, tuple(tensor.shape))
        assert bytes(found[name].load()) == bytes(alone.load())
        assert found[name].num_bytes == tensor.numel() * tensor.element_size()


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(2, device="meta"), torch.eye(2).to_sparse(), torch.zeros(2, dtype=torch.cdouble)],
    ids=["meta", "sparse", "complex128"],
)
def test_what_cannot_be_saved_is_named(tensor):
    with pytest.raises(UsageError, match=r"^model\.layer\.bad is a "):
        plain_sources("model", {"fine": torch.zeros(1), "layer.bad": tensor})
