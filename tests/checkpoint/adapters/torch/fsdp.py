"""Small models under FSDP2, and ranks that save them; for tests of sharded checkpoints."""

import contextlib

import pytest

from trainkit.checkpoint import CheckpointManager, CheckpointOptions

torch = pytest.importorskip("torch")

PRELOAD = ("torch", "torch.distributed.fsdp")
HERE = CheckpointOptions(background=False, timeout=60.0)


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


def restored_bare(folder):
    model = net(2)
    optimizer = optimizer_of(model)
    manager = CheckpointManager(folder, {"model": model, "optimizer": optimizer}, options=HERE)
    assert manager.restore_latest() == 3
    return full_bits(model, optimizer)


def two_steps(folder):
    with ranks_here() as communicator:
        model, optimizer = sharded_run(1, communicator.world_size)
        state = {"model": model, "optimizer": optimizer}
        manager = CheckpointManager(folder, state, communicator=communicator, options=HERE)
        for step in (1, 2):
            train(model, optimizer, 1)
            manager.save(step, blocking=True)
        manager.close()


def flip(step_folder, rank):
    """Change one byte of the first tensor that a rank has saved, and return the file's name."""
    file = step_folder / "ranks" / f"rank{rank:05d}.state.safetensors"
    data = bytearray(file.read_bytes())
    data[8 + int.from_bytes(data[:8], "little")] ^= 1
    file.write_bytes(data)
    return file.name
