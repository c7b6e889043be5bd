"""Exports that torch and safetensors load by themselves, of states that a run has saved."""

from collections import OrderedDict

import numpy as np
import pytest

from trainkit.checkpoint import CheckpointManager
from trainkit.checkpoint.admin.exporting import export
from trainkit.checkpoint.admin.locating import newest_whole
from trainkit.storage import open_storage

torch = pytest.importorskip("torch")


class Scaled(torch.nn.Module):
    """A module with extra state, a tied weight and a type of few bits."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Linear(3, 3)
        self.two = torch.nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.register_buffer("few_bits", torch.arange(3, dtype=torch.bfloat16))

    def get_extra_state(self):
        return {"scale": 3, "history": torch.ones(2)}

    def set_extra_state(self, state):
        self.extra = state


@pytest.fixture
def saved(tmp_path):
    """Save a state, and export one of its entries."""

    def _saved(entry, format, **state):
        url = tmp_path / "root"
        manager = CheckpointManager(url, state)
        manager.save(1)
        manager.close()
        storage = open_storage(url)
        target = tmp_path / f"{entry}.{format}"
        (name,) = (
            name
            for name in export(storage, newest_whole(storage), target, entry=entry, format=format)
            if not name.endswith(".json")
        )
        return target / name

    return _saved


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_safetensors_load_into_the_module(saved):
    from safetensors.torch import load_file

    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    file = saved("net", "safetensors", net=module)
    assert file.name == "model.safetensors"
    assert same(load_file(file), module.state_dict())


def test_torch_loads_a_module_with_its_extra_state(saved):
    module = Scaled()
    file = saved("net", "torch", net=module)
    assert file.name == "pytorch_model.bin"
    found = torch.load(file, weights_only=True)
    extra = found.pop("_extra_state")
    assert extra["scale"] == 3
    assert torch.equal(extra["history"], torch.ones(2))
    expected = module.state_dict()
    del expected["_extra_state"]
    assert same(found, expected)
    again = Scaled()
    again.load_state_dict({**found, "_extra_state": extra})
    assert again.extra["scale"] == 3


def test_torch_loads_an_optimizer_by_names_of_parameters(saved):
    module = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    found = torch.load(saved("opt", "torch", net=module, opt=optimizer), weights_only=True)
    own = optimizer.state_dict()["state"][0]["exp_avg"]
    assert torch.equal(found["state"]["net.weight"]["exp_avg"], own)


def test_torch_loads_any_value_that_a_checkpoint_holds(saved):
    value = {
        "array": np.arange(6, dtype=np.int16).reshape(2, 3),
        "scalar": np.float32(0.5),
        "tuple": (1, "a", None, b"bytes", [np.zeros(1)]),
        3: OrderedDict(b=1, a=2),
        "nan": float("nan"),
    }
    found = torch.load(saved("table", "torch", table=value), weights_only=True)
    assert torch.equal(found["array"], torch.arange(6, dtype=torch.int16).reshape(2, 3))
    assert found["scalar"] == 0.5
    assert found["tuple"][:4] == value["tuple"][:4]
    assert torch.equal(found["tuple"][4][0], torch.zeros(1, dtype=torch.float64))
    assert list(found[3].items()) == [("b", 1), ("a", 2)]
    assert found["nan"] != found["nan"]
