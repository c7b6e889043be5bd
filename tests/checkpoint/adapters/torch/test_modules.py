"""Modules load bare, wrapped and compiled alike, and files load without trainkit."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trainkit.checkpoint import CheckpointManager
from trainkit.checkpoint.adapters.torch.modules import canonical_names
from trainkit.errors import EnvironmentFaultError, UsageError


def net(width=4):
    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.BatchNorm1d(width))


@pytest.fixture
def ddp():
    """The real DistributedDataParallel, over a process group that talks to nobody."""
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    torch.distributed.init_process_group("fake", store=fake.FakeStore(), rank=0, world_size=1)
    yield torch.nn.parallel.DistributedDataParallel
    torch.distributed.destroy_process_group()


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


def test_bare_wrapped_and_compiled_load_each_other(tmp_path, ddp):
    wraps = {
        "bare": lambda m: m,
        "ddp": ddp,
        "compiled": torch.compile,
        "ddp of compiled": lambda m: ddp(torch.compile(m)),
        "compiled ddp": lambda m: torch.compile(ddp(m)),
        "data parallel": torch.nn.DataParallel,
    }
    for i, (saved_as, wrap) in enumerate(wraps.items()):
        model = net()
        root = tmp_path / str(i)
        CheckpointManager(root, {"model": wrap(model)}).save(1)
        (file,) = root.glob("step-*/model/model.safetensors")
        assert set(load_file(file)) == set(net().state_dict()), saved_as
        for restored_as, other in wraps.items():
            fresh = net()
            CheckpointManager(root, {"model": other(fresh)}).restore_latest()
            assert same(model, fresh), (saved_as, restored_as)


def test_a_child_that_is_called_module_keeps_its_name():
    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = torch.nn.Linear(1, 1)
            self.inner = torch.compile(torch.nn.Linear(1, 1))

    canonical = canonical_names(Outer())
    assert canonical("module.weight") == "module.weight"
    assert canonical("inner._orig_mod.weight") == "inner.weight"


def test_the_plain_file_is_the_whole_model(tmp_path):
    model = net()
    CheckpointManager(tmp_path, {"model": model}).save(1)
    (file,) = tmp_path.glob("step-*/model/model.safetensors")
    fresh = net()
    fresh.load_state_dict(load_file(file))
    assert same(model, fresh)


def test_tied_weights_stay_tied_and_the_file_has_both(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(5, 3)
            self.head = torch.nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

    model, fresh = Tied(), Tied()
    CheckpointManager(tmp_path, {"model": model}).save(1)
    CheckpointManager(tmp_path, {"model": fresh}).restore_latest()
    assert same(model, fresh)
    assert fresh.head.weight is fresh.embed.weight
    (file,) = tmp_path.glob("step-*/model/model.safetensors")
    assert set(load_file(file)) == {"embed.weight", "head.weight"}


class Extra(torch.nn.Linear):
    def get_extra_state(self):
        return {"scale": torch.tensor([2.0]), "history": (1, 2), "seen": self.seen}

    def set_extra_state(self, state):
        self.seen = state["seen"]


def test_extra_state_comes_back(tmp_path):
    model, fresh = Extra(2, 2), Extra(2, 2)
    model.seen, fresh.seen = 7, 0
    CheckpointManager(tmp_path, {"model": model}).save(1)
    CheckpointManager(tmp_path, {"model": fresh}).restore_latest()
    assert fresh.seen == 7
    (file,) = tmp_path.glob("step-*/model/model.safetensors")
    assert set(load_file(file)) == {"weight", "bias"}


class Hooked(torch.nn.Module):
    """A layer that loads twice what was saved: by a hook, or by a way of its own."""

    def __init__(self, way):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        if way == "hook before":
            self.register_load_state_dict_pre_hook(self.double)
        elif way == "hook after":
            self.register_load_state_dict_post_hook(self.double_own)
        elif way == "hook at saving":
            self.register_state_dict_post_hook(lambda *args: self.double(*args))
        elif way == "instance":
            self._load_from_state_dict = self.load_doubled

    def double(self, module, state_dict, prefix, *_):
        state_dict[f"{prefix}weight"] = state_dict[f"{prefix}weight"] * 2

    def double_own(self, *_):
        self.weight.data *= 2

    def load_doubled(self, state_dict, prefix, *rest):
        self.double(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Own(Hooked):
    def _load_from_state_dict(self, *args):
        self.load_doubled(*args)


@pytest.mark.parametrize(
    "layer",
    [
        *(lambda way=w: Hooked(way) for w in ("hook before", "hook after", "instance")),
        lambda: Own(""),
        lambda: Hooked("hook at saving"),
    ],
)
def test_what_a_layer_does_itself_is_done(tmp_path, layer):
    """Most models are copied into directly; one part with a way of its own is enough to not."""
    model, fresh = (torch.nn.Sequential(net(), layer()) for _ in range(2))
    CheckpointManager(tmp_path, {"model": model}).save(1)
    CheckpointManager(tmp_path, {"model": fresh}).restore_latest()
    assert same(model[0], fresh[0])
    assert (fresh[1].weight == 2).all()


def test_parameters_are_filled_in_place_and_the_rest_stays(tmp_path):
    class Buffers(torch.nn.Module):
        def __init__(self, value):
            super().__init__()
            self.register_buffer("kept", torch.full((2,), value))
            self.register_buffer("left", torch.full((2,), value), persistent=False)
            self.register_buffer("none", None)
            self.register_parameter("nothing", None)
            self.child = torch.nn.Linear(2, 2)

    model, fresh = Buffers(1.0), Buffers(0.0)
    weight, address = fresh.child.weight, fresh.child.weight.data_ptr()
    before = weight._version
    CheckpointManager(tmp_path, {"model": model}).save(1)
    CheckpointManager(tmp_path, {"model": fresh}).restore_latest()
    assert same(model, fresh)
    assert fresh.child.weight is weight
    assert weight.data_ptr() == address
    assert weight.requires_grad
    assert weight._version > before  # or a backward pass would not notice the change
    assert (fresh.kept == 1).all()
    assert (fresh.left == 0).all()


def test_another_model_is_refused_by_names_and_nothing_changes(tmp_path):
    CheckpointManager(tmp_path, {"model": net()}).save(1)
    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.ReLU())
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(EnvironmentFaultError, match=r"not in the run: 1\.num_batches_tr"):
        CheckpointManager(tmp_path, {"model": other}).restore_latest()
    assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())


def test_another_shape_is_refused_by_name(tmp_path):
    CheckpointManager(tmp_path, {"model": net()}).save(1)
    words = r"model\.0\.weight: the run expects the shape \(5, 3\), the checkpoint holds \(4, 3\)"
    with pytest.raises(EnvironmentFaultError, match=words):
        CheckpointManager(tmp_path, {"model": net(5)}).restore_latest()


def test_an_array_in_the_place_of_a_tensor_is_refused(tmp_path):
    class Extra(torch.nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def get_extra_state(self):
            return self.scale

        def set_extra_state(self, state):
            self.scale = state

    CheckpointManager(tmp_path, {"model": Extra(np.ones(3, np.float32))}).save(1)
    fresh = Extra(torch.zeros(3))
    with pytest.raises(EnvironmentFaultError, match="_extra_state: the run expects the shape"):
        CheckpointManager(tmp_path, {"model": fresh}).restore_latest()
    assert torch.equal(fresh.scale, torch.zeros(3))


def test_another_precision_is_a_warning(tmp_path, caplog):
    CheckpointManager(tmp_path, {"model": torch.nn.Linear(1, 1)}).save(1)
    half = torch.nn.Linear(1, 1).half()
    CheckpointManager(tmp_path, {"model": half}).restore_latest()
    assert "model.weight: saved as torch.float32 and restored as torch.float16" in caplog.text
    assert half.weight.dtype is torch.float16


def test_a_module_and_a_value_are_not_mistaken(tmp_path, box):
    CheckpointManager(tmp_path, {"model": box(1)}).save(1)
    with pytest.raises(EnvironmentFaultError, match="model: the run expects a module"):
        CheckpointManager(tmp_path, {"model": net()}).restore_latest()


def test_a_module_cannot_take_a_folder_of_ours(tmp_path):
    with pytest.raises(UsageError, match="'ranks'"):
        CheckpointManager(tmp_path, {"ranks": net()}).save(1)


def test_a_module_without_tensors(tmp_path):
    for _ in range(2):
        manager = CheckpointManager(tmp_path, {"model": torch.nn.ReLU()})
        manager.restore_latest()
        manager.save(1, blocking=True)
