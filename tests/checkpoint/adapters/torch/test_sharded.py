"""FSDP2 modules and their optimizers in a CheckpointManager, on any number of real ranks."""

import contextlib

import pytest

from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.testing import run_ranks

torch = pytest.importorskip("torch")

from trainkit.checkpoint.format.checksums import CHUNK_BYTES  # noqa: E402
from trainkit.checkpoint.load import parts  # noqa: E402

PRELOAD = ("torch", "torch.distributed.fsdp")
HERE = CheckpointOptions(background=False, timeout=60.0)
SAMPLE = [(2, 3), (3, 2), (2, 0)]
MATRIX = [(w, v) for w in (0, 1, 2, 3, 4) for v in (0, 1, 2, 3, 4)]
"""Ranks that save and that restore; 0 is a bare run without FSDP."""


def net(seed):
    """A model of which rows do not divide evenly, and some ranks have none."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))


def optimizer_of(model):
    return torch.optim.AdamW(model.parameters(), lr=0.05)


def train(model, optimizer, num_steps):
    losses = []
    for step in range(num_steps):
        optimizer.zero_grad()
        loss = model(torch.linspace(-1, 1, 20).reshape(4, 5) + step).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def full_bits(model, optimizer):
    """All parameters and moments, whole, the same on all ranks."""

    def whole(tensor):
        tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        return tensor.detach().numpy().tobytes()

    found = [whole(tensor) for tensor in model.state_dict().values()]
    for values in optimizer.state_dict()["state"].values():
        found += [whole(values[key]) for key in sorted(values)]
    return found


@contextlib.contextmanager
def ranks_here():
    """A process group, and a communicator on a store of its own."""
    import torch.distributed as dist

    from trainkit.coordination import Communicator
    from trainkit.coordination.torch import TorchStore

    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    store = dist.PrefixStore("trainkit", dist.distributed_c10d._get_default_store())
    try:
        yield Communicator(TorchStore(store), rank, world_size, timeout=60.0)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def sharded_run(seed, world_size, *, replicas=1):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if replicas > 1:
        shape, names = (replicas, world_size // replicas), ("replicate", "shard")
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    else:
        mesh = init_device_mesh("cpu", (world_size,))
    model = net(seed)
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh)
    return model, optimizer_of(model)


def saving_ranks(folder, replicas=1):
    with ranks_here() as communicator:
        model, optimizer = sharded_run(1, communicator.world_size, replicas=replicas)
        train(model, optimizer, 3)
        state = {"model": model, "optimizer": optimizer}
        manager = CheckpointManager(folder, state, communicator=communicator, options=HERE)
        manager.save(3, blocking=True)
        manager.close()
        return full_bits(model, optimizer)


def restoring_ranks(folder):
    """Restore; then train beside a run to which the whole state was given by another way."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    with ranks_here() as communicator:
        model, optimizer = sharded_run(2, communicator.world_size)
        state = {"model": model, "optimizer": optimizer}
        manager = CheckpointManager(folder, state, communicator=communicator, options=HERE)
        assert manager.restore_latest() == 3
        manager.close()
        found = full_bits(model, optimizer)
        other, its_optimizer = sharded_run(3, communicator.world_size)
        plain, plain_optimizer = net(4), None
        plain_optimizer = optimizer_of(plain)
        CheckpointManager(
            folder,
            {"model": plain, "optimizer": plain_optimizer},
            options=CheckpointOptions(read_only=True),
        ).restore_latest()
        from torch.distributed.checkpoint.state_dict import get_state_dict

        of_model, of_optimizer = get_state_dict(plain, plain_optimizer)
        set_state_dict(
            other,
            its_optimizer,
            model_state_dict=of_model,
            optim_state_dict=of_optimizer,
            options=StateDictOptions(full_state_dict=True),
        )
        return found, train(model, optimizer, 5), train(other, its_optimizer, 5)


def save_bare(folder):
    model = net(1)
    optimizer = optimizer_of(model)
    train(model, optimizer, 3)
    CheckpointManager(folder, {"model": model, "optimizer": optimizer}, options=HERE).save(3)
    return full_bits(model, optimizer)


def restored_bare(folder):
    model = net(2)
    optimizer = optimizer_of(model)
    manager = CheckpointManager(folder, {"model": model, "optimizer": optimizer}, options=HERE)
    assert manager.restore_latest() == 3
    return full_bits(model, optimizer)


def beginning_ranks(folder, file):
    """Begin with the weights of a sharded run, and with those of a plain file."""
    with ranks_here() as communicator:
        found = []
        for url in (folder, file):
            model, optimizer = sharded_run(6, communicator.world_size)
            state = {"model": model, "optimizer": optimizer}
            manager = CheckpointManager(None, state, communicator=communicator)
            assert manager.restore_latest(init_from=url) is None
            found.append(full_bits(model, optimizer))
        return found


NAME = "T9 another number of ranks, sharded"


def check(folder, saved, loaded, replicas=1):
    folder = str(folder)
    if saved == 0:
        expected = save_bare(folder)
    else:
        results = run_ranks(saving_ranks, saved, folder, replicas, preload=PRELOAD)
        expected = results[0].value
    if loaded == 0:
        assert restored_bare(folder) == expected
        return
    for result in run_ranks(restoring_ranks, loaded, folder, preload=PRELOAD):
        found, losses, expected_losses = result.value
        assert found == expected
        assert losses == expected_losses


@pytest.mark.parametrize(("saved", "loaded"), SAMPLE)
@pytest.mark.world_size(4)
def test_on_another_number_of_ranks(tmp_path, tally, saved, loaded):
    check(tmp_path, saved, loaded)
    tally.passed(NAME, 1)


@pytest.mark.world_size(2)
def test_control(tmp_path, monkeypatch):
    """Rows of a part in another order: the comparison finds them."""
    results = run_ranks(saving_ranks, 2, str(tmp_path), 1, preload=PRELOAD)
    assert restored_bare(str(tmp_path)) == results[0].value
    real = parts.copy_box

    def confused(source, shape, offsets, target, *rest):
        real(source, shape, offsets, target, *rest)
        target[:] = bytes(target)[::-1]

    monkeypatch.setattr(parts, "copy_box", confused)
    assert restored_bare(str(tmp_path)) != results[0].value


@pytest.mark.world_size(3)
def test_the_weights_alone(tmp_path):
    from safetensors.torch import save_file

    saved = run_ranks(saving_ranks, 3, str(tmp_path), 1, preload=PRELOAD)[0].value
    weights = saved[:4]
    plain = net(2)
    CheckpointManager(None, {"model": plain}).restore_latest(init_from=tmp_path)
    assert full_bits(plain, optimizer_of(plain)) == weights
    file = tmp_path / "plain.safetensors"
    save_file(plain.state_dict(), file)
    for result in run_ranks(beginning_ranks, 2, str(tmp_path), str(file), preload=PRELOAD):
        assert result.value == [weights, weights]


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "loaded"), sorted(set(MATRIX) - set(SAMPLE) - {(0, 0)}))
@pytest.mark.world_size(4)
def test_on_any_number_of_ranks(tmp_path, tally, saved, loaded):
    check(tmp_path, saved, loaded)
    tally.passed(NAME, 1)


@pytest.mark.slow
@pytest.mark.world_size(4)
def test_replicas_of_shards_are_saved_once(tmp_path):
    check(tmp_path, 4, 3, replicas=2)


WIDE = 1536
"""Six such square layers are 56 MB; with two moments for each 170 MB, 7 chunks a layer."""


def wide_run(seed, world_size):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(seed)
    layers = [torch.nn.Linear(WIDE, WIDE, bias=False) for _ in range(6)]
    model = torch.nn.Sequential(*layers)
    mesh = init_device_mesh("cpu", (world_size,))
    for layer in (*layers, model):
        fully_shard(layer, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    return model, optimizer


def local_bits(model, optimizer):
    """What this rank has, by parameter: offset of its rows, and their bytes."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    found = []
    moments = [
        values[key] for values in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")
    ]
    for tensor in (*model.parameters(), *moments):
        _, (row, _) = compute_local_shape_and_global_offset(
            tensor.shape, tensor.device_mesh, tensor.placements
        )
        found.append((row * WIDE * 4, tensor.to_local().detach().numpy().tobytes()))
    return found


def saving_wide_ranks(folder):
    with ranks_here() as communicator:
        model, optimizer = wide_run(1, communicator.world_size)
        model(torch.ones(1, WIDE)).square().mean().backward()
        optimizer.step()
        state = {"model": model, "optimizer": optimizer}
        manager = CheckpointManager(folder, state, communicator=communicator, options=HERE)
        manager.save(1, blocking=True)
        manager.close()
        return local_bits(model, optimizer)


def counting_ranks(folder):
    """Restore; how many bytes were read of files, and how much memory that took at the most."""
    import resource

    from trainkit.storage import LocalStorage

    with ranks_here() as communicator:
        model, optimizer = wide_run(2, communicator.world_size)
        state = {"model": model, "optimizer": optimizer}
        manager = CheckpointManager(folder, state, communicator=communicator, options=HERE)
        num_bytes = 0
        real = LocalStorage.read_into

        def counted(self, path, buffer, offset=0):
            nonlocal num_bytes
            num_bytes += len(buffer)
            return real(self, path, buffer, offset)

        LocalStorage.read_into = counted
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert manager.restore_latest() == 1
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        manager.close()
        return num_bytes, grown, local_bits(model, optimizer)


@pytest.mark.parametrize("loaded", [4, 3])
@pytest.mark.world_size(4)
def test_a_rank_reads_its_own_share(tmp_path, loaded):
    """On as many ranks a quarter; on 3, what each needs of two files, in whole chunks."""
    saved = run_ranks(saving_wide_ranks, 4, str(tmp_path), preload=PRELOAD)
    wholes = [
        b"".join(bits for _, bits in sorted(parts))
        for parts in zip(*(result.value for result in saved), strict=True)
    ]
    total = sum(map(len, wholes))
    results = run_ranks(counting_ranks, loaded, str(tmp_path), preload=PRELOAD)
    for result in results:
        num_bytes, grown, found = result.value
        # All chunks of the files that the rank needs are as much as it needs to read here.
        share = total / 4 if loaded == 4 else total / 2
        assert num_bytes < share + 4 * CHUNK_BYTES
        assert num_bytes < 0.7 * total
        # Its share twice, as read and as the optimizer keeps it, and what is read at once.
        assert grown < 2 * total / loaded + 100 * 2**20
        for whole, (begin, bits) in zip(wholes, found, strict=True):
            assert whole[begin : begin + len(bits)] == bits
    assert sum(len(bits) for result in results for _, bits in result.value[2]) == total
    read = [result.value[0] for result in results]
    print(f"of {total} bytes {loaded} ranks read {read}, memory {[r.value[1] for r in results]}")
