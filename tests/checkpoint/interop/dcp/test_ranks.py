"""Real ranks: FSDP2 states on another number of ranks, failures of one rank, cached plans."""

import contextlib
import os

import pytest

from trainkit.testing import run_ranks

torch = pytest.importorskip("torch")

PRELOAD = ("torch", "torch.distributed.fsdp", "torch.distributed.checkpoint.state_dict")
"""Imports of some seconds, made once for all ranks."""

SAMPLE = [(1, 2), (2, 3), (3, 1)]
MATRIX = [(w, v) for w in (1, 2, 3, 4) for v in (1, 2, 3, 4)]


@contextlib.contextmanager
def process_group():
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        yield int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.barrier()
    finally:
        dist.destroy_process_group()


def sharded_run(seed):
    """A model of which rows and columns do not divide evenly, and its optimizer."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.ReLU(), torch.nn.Linear(7, 3)
    )
    mesh = init_device_mesh("cpu", (int(os.environ["WORLD_SIZE"]),))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def train(model, optimizer, num_steps):
    losses = []
    for step in range(num_steps):
        optimizer.zero_grad()
        inputs = torch.linspace(-1, 1, 20).reshape(4, 5) + step
        loss = model(inputs).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def whole(model, optimizer):
    """The full state, the same on all ranks."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True)
    return get_state_dict(model, optimizer, options=options)


def flat_bits(state):
    from torch.distributed.checkpoint._nested_dict import flatten_state_dict

    flat, _ = flatten_state_dict(dict(zip(("model", "optimizer"), state, strict=True)))
    return {
        name: value.numpy().tobytes() if isinstance(value, torch.Tensor) else value
        for name, value in flat.items()
    }


def saving_ranks(folder, reference):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict

    from trainkit.checkpoint.interop import TrainkitWriter

    with process_group() as (rank, _):
        model, optimizer = sharded_run(seed=1)
        train(model, optimizer, 3)
        of_model, of_optimizer = get_state_dict(model, optimizer)
        state = {"model": of_model, "optimizer": of_optimizer, "step": 3, "same": torch.arange(9)}
        dcp.save(state, checkpoint_id="3", storage_writer=TrainkitWriter(folder))
        full = whole(model, optimizer)
        if rank == 0:
            torch.save(full, reference)


def loading_ranks(folder, reference):
    """Load; then train five steps beside a run that was filled by another way."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_state_dict,
        set_state_dict,
    )

    from trainkit.checkpoint.interop import TrainkitReader

    with process_group():
        expected = torch.load(reference, weights_only=True)
        model, optimizer = sharded_run(seed=2)
        of_model, of_optimizer = get_state_dict(model, optimizer)
        state = {
            "model": of_model,
            "optimizer": of_optimizer,
            "step": 0,
            "same": torch.zeros(9, dtype=torch.int64),
        }
        dcp.load(state, storage_reader=TrainkitReader(folder))
        set_state_dict(
            model,
            optimizer,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizer"],
        )
        equal = flat_bits(whole(model, optimizer)) == flat_bits(expected)
        other, its_optimizer = sharded_run(seed=3)
        set_state_dict(
            other,
            its_optimizer,
            model_state_dict=expected[0],
            optim_state_dict=expected[1],
            options=StateDictOptions(full_state_dict=True),
        )
        losses = train(model, optimizer, 5)
        return equal, state["step"], state["same"].tolist(), losses, train(other, its_optimizer, 5)


def check_reshard(folder, saved, loaded):
    reference = str(folder / "reference.pt")
    root = str(folder / "root")
    run_ranks(saving_ranks, saved, root, reference, preload=PRELOAD)
    for result in run_ranks(loading_ranks, loaded, root, reference, preload=PRELOAD):
        equal, step, same, losses, expected = result.value
        assert equal
        assert (step, same) == (3, list(range(9)))
        assert losses == expected


@pytest.mark.parametrize(("saved", "loaded"), SAMPLE)
@pytest.mark.world_size(4)
def test_fsdp_on_another_number_of_ranks(tmp_path, saved, loaded):
    check_reshard(tmp_path, saved, loaded)


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "loaded"), sorted(set(MATRIX) - set(SAMPLE)))
@pytest.mark.world_size(4)
def test_fsdp_on_any_number_of_ranks(tmp_path, saved, loaded):
    check_reshard(tmp_path, saved, loaded)


def failing_ranks(folder):
    """Rank 1's disk is full at its second save."""
    import torch.distributed.checkpoint as dcp

    from trainkit.checkpoint import CheckpointOptions
    from trainkit.checkpoint.interop import TrainkitReader, TrainkitWriter
    from trainkit.storage import LocalStorage

    with process_group() as (rank, _):
        writer = TrainkitWriter(folder, options=CheckpointOptions(attempts=1))

        def save(value):
            state = {f"own{rank}": torch.full((3,), value), "same": torch.full((5,), value)}
            dcp.save(state, checkpoint_id=str(value), storage_writer=writer)

        def load():
            state = {f"own{rank}": torch.zeros(3, dtype=int), "same": torch.zeros(5, dtype=int)}
            dcp.load(state, storage_reader=TrainkitReader(folder))
            return {*state[f"own{rank}"].tolist(), *state["same"].tolist()}

        save(1)
        plain = LocalStorage.write
        if rank == 1:

            def full(self, path, parts):
                raise OSError(28, "No space left on device")

            LocalStorage.write = full
        try:
            save(2)
            caught = None
        except dcp.CheckpointException as error:
            caught = sorted(error.failures), str(error.failures[1][0])
        LocalStorage.write = plain
        between = load()
        save(3)
        return caught, between, load()


@pytest.mark.world_size(3)
def test_a_full_disk_of_one_rank_fails_the_save_on_all(ranks, tmp_path):
    for result in ranks(failing_ranks, str(tmp_path)):
        (failed, message), between, after = result.value
        assert failed == [1]
        assert "No space left on device" in message
        assert (between, after) == ({1}, {3})


def caching_ranks(folder):
    """Planners that cache plans bring an earlier save's plan along, with its folder in it."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    from trainkit.checkpoint.interop import TrainkitReader, TrainkitWriter

    with process_group() as (rank, _):
        one_for_all = TrainkitWriter(folder)
        found = []
        for step, writer in enumerate(
            [one_for_all, one_for_all, TrainkitWriter(folder), TrainkitWriter(folder)], start=1
        ):
            number = min(step, 3)  # the last one saves a step again
            state = {f"own{rank}": torch.full((3,), step), "same": torch.full((5,), step)}
            dcp.save(
                state,
                checkpoint_id=str(number),
                storage_writer=writer,
                planner=DefaultSavePlanner(enable_plan_caching=True),
            )
            state = {f"own{r}": torch.zeros(3, dtype=int) for r in range(3)}
            dcp.load(state, storage_reader=TrainkitReader(folder))
            found.append({value for row in state.values() for value in row.tolist()})
        return found


@pytest.mark.world_size(3)
def test_planners_that_cache_plans(ranks, tmp_path):
    for result in ranks(caching_ranks, str(tmp_path)):
        assert result.value == [{1}, {2}, {3}, {4}]


def apart_ranks(folder, same_name):
    """Each rank has a folder of its own, under the same path or under another one."""
    import torch.distributed.checkpoint as dcp

    from trainkit.checkpoint import CheckpointOptions
    from trainkit.checkpoint.interop import TrainkitWriter
    from trainkit.checkpoint.interop.dcp import writer as module
    from trainkit.storage import LocalStorage

    with process_group() as (rank, _):
        if same_name:
            storage = LocalStorage(f"{folder}/{rank}")
            storage.url = folder
            module.open_storage = lambda url: storage
        options = CheckpointOptions(visible_within=0.5)
        writer = TrainkitWriter(f"{folder}/{rank}", step=1, options=options)
        try:
            dcp.save({f"own{rank}": torch.ones(3)}, storage_writer=writer)
        except dcp.CheckpointException as error:
            return {r: str(reason) for r, (reason, _) in error.failures.items()}


@pytest.mark.parametrize("same_name", [True, False])
@pytest.mark.world_size(2)
def test_a_path_that_is_not_shared_is_named(ranks, tmp_path, same_name):
    for result in ranks(apart_ranks, str(tmp_path), same_name):
        assert list(result.value) == [1]
        assert "the checkpoint path is not shared: rank 1 does not see" in result.value[1]
    assert list(tmp_path.rglob("MANIFEST.json")) == []


def async_ranks(folder, kind):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

    from trainkit.checkpoint.interop import TrainkitReader, TrainkitWriter

    with process_group() as (rank, _):
        writer = TrainkitWriter(folder)
        for step in (1, 2):
            state = {f"own{rank}": torch.full((1000,), step), "step": step}
            done = dcp.async_save(
                state,
                checkpoint_id=str(step),
                storage_writer=writer,
                async_checkpointer_type=AsyncCheckpointerType[kind],
            )
            state[f"own{rank}"] += 7  # DCP has staged it
            done.result(timeout=120)
        state = {f"own{rank}": torch.zeros(1000, dtype=int), "step": 0}
        dcp.load(state, storage_reader=TrainkitReader(folder))
        return set(state[f"own{rank}"].tolist()), state["step"]


@pytest.mark.parametrize("kind", ["THREAD", pytest.param("PROCESS", marks=pytest.mark.slow)])
@pytest.mark.world_size(2)
def test_async_saves(ranks, tmp_path, kind):
    for result in ranks(async_ranks, str(tmp_path), kind, timeout=180):
        assert result.value == ({2}, 2)
