"""What dcp.save stored is what dcp.load gives back, and anybody can read it."""

import collections
import json

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner

from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.checkpoint.interop import TrainkitReader, TrainkitWriter, files
from trainkit.errors import EnvironmentFaultError

HERE = CheckpointOptions(background=False)

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32,
    torch.int64, torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e8m0fnu,
]  # fmt: skip


def of_bits(dtype, shape, seed=0):
    """A tensor of random bits, so that nans and the like are among them."""
    rng = np.random.default_rng(seed)
    high = 2 if dtype is torch.bool else 256
    size = int(np.prod(shape)) * dtype.itemsize
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(rng.integers(0, high, size, np.uint8)).view(dtype).reshape(shape)


def bits(tensor):
    if tensor.numel() == 0:
        return tuple(tensor.shape)
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist()


def save(root, state, step=1, **options):
    dcp.save(state, storage_writer=TrainkitWriter(root, step=step, **options))


def load(root, state, **options):
    dcp.load(state, storage_reader=TrainkitReader(root, **options))
    return state


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (1,), (0, 4), ()], ids=str)
def test_tensors_of_each_type(tmp_path, dtype, shape):
    state = {"a": of_bits(torch.uint8, (3,)), "x": of_bits(dtype, shape)}
    save(tmp_path, state)
    back = load(
        tmp_path, {"a": torch.zeros(3, dtype=torch.uint8), "x": torch.zeros_like(state["x"])}
    )
    for name in state:
        assert bits(back[name]) == bits(state[name])


def test_views_and_parameters(tmp_path):
    base = of_bits(torch.float32, (6, 8))
    state = {
        "turned": base.T,
        "cut": base[1:4, ::2],
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "conjugate": torch.tensor([1 + 2j, 3 - 4j]).conj(),
        "channels": torch.arange(48.0).reshape(1, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    save(tmp_path, state)
    back = load(tmp_path, {name: torch.zeros_like(value) for name, value in state.items()})
    for name, value in state.items():
        assert bits(back[name]) == bits(value.resolve_conj())


def test_values_come_back_with_their_types(tmp_path):
    state = {
        "int": 7, "float": 0.1, "nan": float("inf"), "text": "ä", "none": None, "yes": True,
        "bytes": b"\x00\xff", "tuple": (1, (2.5, None)), "list": [1, [2]], "big": 10**30,
        "array": np.arange(6.0).reshape(2, 3), "scalar": np.float32(1.5),
        "ordered": (collections.OrderedDict(b=1, a=2),),
        "pair": (torch.arange(3), "x"),
    }  # fmt: skip
    save(tmp_path, state)
    back = load(tmp_path, dict.fromkeys(state))
    for name in set(state) - {"array", "pair"}:
        assert back[name] == state[name]
        assert type(back[name]) is type(state[name])
    assert back["array"].tolist() == state["array"].tolist()
    assert back["pair"][0].tolist() == [0, 1, 2]
    assert back["pair"][1] == "x"


def test_a_model_and_its_optimizer_go_on_as_if_unbroken(tmp_path):
    def run():
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def train(model, optimizer, steps):
        losses = []
        for step in range(steps):
            optimizer.zero_grad()
            loss = model(torch.linspace(-1, 1, 12).reshape(4, 3) + step).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model, optimizer = run()
    train(model, optimizer, 3)
    of_model, of_optimizer = get_state_dict(model, optimizer)
    save(tmp_path, {"model": of_model, "optimizer": of_optimizer, "step": 3}, step=3)
    again, its_optimizer = run()
    of_model, of_optimizer = get_state_dict(again, its_optimizer)
    state = load(tmp_path, {"model": of_model, "optimizer": of_optimizer, "step": 0})
    set_state_dict(
        again,
        its_optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )
    assert state["step"] == 3
    assert train(again, its_optimizer, 5) == train(model, optimizer, 5)


def test_the_files_are_read_without_trainkit(tmp_path):
    state = {"w": torch.randn(4, 3), "sub": {"b": torch.randn(2)}, "lr": 0.5}
    save(tmp_path, state, step=12)
    (folder,) = tmp_path.glob("step-0000000012.g01-0000")
    tensors = load_file(folder / "dcp/rank00000-0.safetensors")
    assert bits(tensors["w"]) == bits(state["w"])
    assert bits(tensors["sub.b"]) == bits(state["sub"]["b"])
    assert json.loads((folder / "dcp/rank00000-values.json").read_text())["values"] == {"lr": 0.5}
    metadata = json.loads((folder / "dcp/metadata.json").read_text())
    (chunk,) = metadata["items"]["w"]["chunks"]
    data = (folder / chunk["file"]).read_bytes()[chunk["begin"] : chunk["end"]]
    assert list(data) == bits(state["w"])


def test_no_pickle_is_in_any_file(tmp_path):
    save(tmp_path, {"w": torch.randn(4, 3), "values": (1, 2), "step": 1})
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert path.suffix in (".json", ".safetensors") or path.parent.name == ".generations"
            assert not path.read_bytes().startswith((b"\x80", b"PK"))


def test_large_states_are_spread_over_files(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_SMALL", 1000)
    state = {f"w{i}": torch.randn(40 + i) for i in range(20)}
    save(tmp_path, state, threads=3)
    assert len(list(tmp_path.glob("step-*/dcp/*.safetensors"))) == 3
    back = load(tmp_path, {name: torch.zeros_like(value) for name, value in state.items()})
    assert all(bits(back[name]) == bits(state[name]) for name in state)


def test_tensors_that_span_chunks_of_the_checksums(tmp_path):
    state = {"big": of_bits(torch.float32, (5_000_000,)), "small": torch.arange(5)}
    save(tmp_path, state)
    back = load(tmp_path, {name: torch.zeros_like(value) for name, value in state.items()})
    assert torch.equal(back["big"].view(torch.int32), state["big"].view(torch.int32))
    assert torch.equal(back["small"], state["small"])


def test_names_that_are_nasty(tmp_path):
    state = {"__metadata__": torch.ones(1), "a/b": torch.ones(2), "ä b": 1, "": torch.ones(3)}
    save(tmp_path, state)
    back = load(
        tmp_path, {name: torch.zeros(3) if name == "" else value for name, value in state.items()}
    )
    assert back[""].tolist() == [1, 1, 1]
    assert back["ä b"] == 1


def test_the_newest_is_loaded_and_a_step_by_its_number(tmp_path):
    writer = TrainkitWriter(tmp_path)
    for step in (1, 3, 2):
        dcp.save({"x": torch.tensor(step)}, checkpoint_id=f"step-{step}", storage_writer=writer)
    assert load(tmp_path, {"x": torch.tensor(0)})["x"] == 2
    assert load(tmp_path, {"x": torch.tensor(0)}, step=3)["x"] == 3
    state = {"x": torch.tensor(0)}
    dcp.load(state, checkpoint_id=f"{tmp_path}/1", storage_reader=TrainkitReader())
    assert state["x"] == 1
    assert CheckpointManager(tmp_path, {"other": {}}, options=HERE).all_steps() == [1, 2, 3]


def test_a_step_saved_again_stands_beside_the_first(tmp_path):
    writer = TrainkitWriter(tmp_path, step=5)
    for value in (1, 2):
        dcp.save({"x": torch.tensor(value)}, storage_writer=writer)
    assert len(list(tmp_path.glob("step-0000000005.g01-*"))) == 2
    assert load(tmp_path, {"x": torch.tensor(0)})["x"] == 2
    first = tmp_path / "step-0000000005.g01-0000"
    assert load(first, {"x": torch.tensor(0)})["x"] == 1


def test_part_of_a_checkpoint_is_loaded(tmp_path):
    save(tmp_path, {"a": torch.ones(2), "b": torch.ones(3), "n": 1})
    assert load(tmp_path, {"a": torch.zeros(2)})["a"].tolist() == [1, 1]
    with pytest.raises(dcp.CheckpointException, match="Missing key in checkpoint state_dict: c"):
        load(tmp_path, {"c": torch.zeros(2)})


def test_planners_that_do_not_flatten(tmp_path):
    dcp.save(
        {"a": torch.ones(2), "n": {"k": (1, 2)}},
        storage_writer=TrainkitWriter(tmp_path, step=1),
        planner=DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
    )
    state = {"a": torch.zeros(2), "n": None}
    dcp.load(
        state,
        storage_reader=TrainkitReader(tmp_path),
        planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
    )
    assert state["a"].tolist() == [1, 1]
    assert state["n"] == {"k": (1, 2)}


def test_a_planner_that_transforms_and_says_so(tmp_path):
    import dataclasses

    class Half(DefaultSavePlanner):
        def create_local_plan(self):
            plan = super().create_local_plan()
            items = []
            for item in plan.items:
                if item.tensor_data is not None:
                    properties = dataclasses.replace(
                        item.tensor_data.properties, dtype=torch.float16
                    )
                    data = dataclasses.replace(item.tensor_data, properties=properties)
                    item = dataclasses.replace(item, tensor_data=data)
                items.append(item)
            return dataclasses.replace(plan, items=items)

        def resolve_data(self, write_item):
            data = super().resolve_data(write_item)
            return data.half() if isinstance(data, torch.Tensor) else data

    state = {"w": torch.tensor([1.5, 2.5]), "n": (1, 2)}
    dcp.save(state, storage_writer=TrainkitWriter(tmp_path, step=1), planner=Half())
    back = load(tmp_path, {"w": torch.zeros(2), "n": None})
    assert back["w"].tolist() == [1.5, 2.5]
    assert back["n"] == (1, 2)


def test_a_manager_refuses_it_and_changes_nothing(tmp_path):
    save(tmp_path, {"table": 1})
    table = {"step": 0}
    with pytest.raises(EnvironmentFaultError, match="holds no such entry"):
        CheckpointManager(tmp_path, {"table": table}, options=HERE).restore_latest()
    assert table == {"step": 0}


def test_checkpoints_of_a_manager_are_refused_with_a_way_out(tmp_path):
    CheckpointManager(tmp_path, {"table": {"step": 0}}, options=HERE).save(1)
    with pytest.raises(dcp.CheckpointException, match="was not saved by a TrainkitWriter"):
        load(tmp_path, {"table": 1})


def test_async_saves(tmp_path):
    import torch.distributed as dist

    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        writer = TrainkitWriter(tmp_path)
        state = {"x": torch.ones(1000), "step": 1}
        first = dcp.async_save(state, checkpoint_id="1", storage_writer=writer)
        state["x"] += 1  # DCP has staged it
        first.result(timeout=60)
        second = dcp.async_save(state, checkpoint_id="2", storage_writer=writer)
        second.result(timeout=60)
    finally:
        dist.destroy_process_group()
    for step in (1, 2):
        back = load(tmp_path, {"x": torch.zeros(1000), "step": 0}, step=step)
        assert (back["x"] == step).all()
