"""A rank reads of a sharded checkpoint what it has of it; together they read all."""

import pytest

from tests.checkpoint.adapters.torch.fsdp import (
    HERE,
    PRELOAD,
    flip,
    full_bits,
    ranks_here,
    sharded_run,
    two_steps,
)
from trainkit.checkpoint import CheckpointManager
from trainkit.checkpoint.format.checksums import CHUNK_BYTES
from trainkit.testing import run_ranks

torch = pytest.importorskip("torch")

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


def falling_back(folder):
    with ranks_here() as communicator:
        model, optimizer = sharded_run(2, communicator.world_size)
        state = {"model": model, "optimizer": optimizer}
        manager = CheckpointManager(folder, state, communicator=communicator, options=HERE)
        restored = manager.restore_latest()
        manager.close()
        return restored, full_bits(model, optimizer)


@pytest.mark.parametrize("loaded", [3, 2, 4])
@pytest.mark.world_size(4)
def test_damage_that_one_rank_finds_is_damage_for_all(tmp_path, loaded):
    run_ranks(two_steps, 3, str(tmp_path), preload=PRELOAD)
    newest = max(tmp_path.glob("step-*"))
    flip(newest, 2)
    results = run_ranks(falling_back, loaded, str(tmp_path), preload=PRELOAD)
    assert [result.value[0] for result in results] == [1] * loaded
    assert len({tuple(result.value[1]) for result in results}) == 1
    assert [path.name for path in (tmp_path / ".quarantine").iterdir()] == [newest.name]
