"""What is taken from a module without asking it is what it would have said."""

import collections

import pytest
import torch

from trainkit.checkpoint.adapters.torch.modules import ModuleAdapter
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


class Table(collections.OrderedDict):
    """As DeepSpeed's, which cannot be made from another one."""

    def __init__(self, owner, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.owner = owner


def test_parameters_in_a_table_of_its_own_kind_are_left_to_torch():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    own = Table(model[0])
    own.update(model[0]._parameters)
    model[0]._parameters = own
    assert plain_tensors(model) is None
    (document,) = ModuleAdapter().capture("model", {"model": model})
    assert list(document.tensors) == list(model.state_dict())


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, torch.ones(2, 3))])
@pytest.mark.parametrize("child", [False, True], ids=["alone", "as a child"])
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore::DeprecationWarning")
def test_torchscript_is_left_to_torch(make, child):
    scripted = make(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2)))
    model = torch.nn.Sequential(scripted) if child else scripted
    assert plain_tensors(model) is None
    (document,) = ModuleAdapter().capture("model", {"model": model})
    assert list(document.tensors) == list(model.state_dict())


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
        exact = tensor.detach().resolve_conj().float() if name == "half" else tensor.detach()
        expected = exact.resolve_conj().contiguous().numpy().tobytes()
        if name == "half":  # the upper half of a float32
            expected = b"".join(expected[i + 2 : i + 4] for i in range(0, len(expected), 4))
        assert bytes(found[name].load()) == bytes(alone.load()) == expected
        assert found[name].num_bytes == tensor.numel() * tensor.element_size()


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(2, device="meta"), torch.eye(2).to_sparse(), torch.zeros(2, dtype=torch.cdouble)],
    ids=["meta", "sparse", "complex128"],
)
def test_what_cannot_be_saved_is_named(tensor):
    with pytest.raises(UsageError, match=r"^model\.layer\.bad is a "):
        plain_sources("model", {"fine": torch.zeros(1), "layer.bad": tensor})
