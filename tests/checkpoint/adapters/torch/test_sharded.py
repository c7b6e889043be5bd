"""FSDP2 modules and their optimizers in a CheckpointManager, on any number of real ranks."""

import contextlib

import pytest

from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.testing import run_ranks

torch = pytest.importorskip("torch")

from trainkit.checkpoint.admin import exporting  # noqa: E402
from trainkit.checkpoint.admin.comparison import Side, compare  # noqa: E402
from trainkit.checkpoint.admin.exporting import export  # noqa: E402
from trainkit.checkpoint.admin.inspection import inspect  # noqa: E402
from trainkit.checkpoint.format.checksums import CHUNK_BYTES  # noqa: E402
from trainkit.checkpoint.load import parts  # noqa: E402
from trainkit.errors import CheckpointDamagedError  # noqa: E402

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


def newest_of(folder):
    from trainkit.checkpoint.admin.locating import find_step, open_root

    storage, named = open_root(str(folder))
    return storage, find_step(storage, None, named)


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same state as three ranks saved it, in parts, and as a bare run did."""
    folder = tmp_path_factory.mktemp("pair")
    run_ranks(saving_ranks, 3, str(folder / "sharded"), 1, preload=PRELOAD)
    model = net(2)
    state = {"model": model, "optimizer": optimizer_of(model)}
    reading = CheckpointOptions(read_only=True)
    assert CheckpointManager(str(folder / "sharded"), state, options=reading).restore_latest() == 3
    CheckpointManager(str(folder / "bare"), state, options=HERE).save(3, blocking=True)
    return folder


@pytest.mark.parametrize("entry", ["model", "optimizer"])
@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_an_export_is_that_of_a_run_without_shards(pair, tmp_path, entry, form):
    for name in ("sharded", "bare"):
        export(*newest_of(pair / name), tmp_path / name, entry=entry, format=form)
    found, expected = files_in(tmp_path / "sharded"), files_in(tmp_path / "bare")
    assert found.keys() == expected.keys()
    if form == "safetensors":
        assert found == expected
        return
    (file,) = found
    found, expected = (
        torch.load(tmp_path / n / file, weights_only=True) for n in ("sharded", "bare")
    )
    flat, expected_flat = flattened(found), flattened(expected)
    assert flat == expected_flat


def flattened(value, place=""):
    if isinstance(value, dict):
        return [leaf for k, v in sorted(value.items()) for leaf in flattened(v, f"{place}.{k}")]
    if isinstance(value, (list, tuple)):
        return [leaf for i, v in enumerate(value) for leaf in flattened(v, f"{place}.{i}")]
    if isinstance(value, torch.Tensor):
        return [(place, value.dtype, tuple(value.shape), value.numpy().tobytes())]
    return [(place, value)]


def test_an_export_in_several_files(pair, tmp_path, monkeypatch):
    import json

    from safetensors.torch import load_file

    monkeypatch.setattr(exporting, "FILE_BYTES", 150)
    names = export(*newest_of(pair / "sharded"), tmp_path / "split")
    monkeypatch.undo()
    index = json.loads((tmp_path / "split" / "model.safetensors.index.json").read_text())
    assert sorted({*index["weight_map"].values(), "model.safetensors.index.json"}) == names
    assert len(names) == 4
    export(*newest_of(pair / "bare"), tmp_path / "whole")
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    found = {
        key: load_file(tmp_path / "split" / file)[key] for key, file in index["weight_map"].items()
    }
    assert flattened(found) == flattened(expected)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in expected.values())


def test_other_tools_get_the_whole(pair, tmp_path):
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    from trainkit.checkpoint.interop import export_dcp, export_torch

    for name in ("sharded", "bare"):
        export_torch(pair / name, 3, tmp_path / f"{name}.pt")
        export_dcp(pair / name, 3, tmp_path / name)
        dcp_to_torch_save(tmp_path / name, tmp_path / f"{name}-dcp.pt")
    for form in (".pt", "-dcp.pt"):
        sharded, bare = (
            torch.load(tmp_path / f"{name}{form}", weights_only=True)
            for name in ("sharded", "bare")
        )
        assert flattened(sharded) == flattened(bare)


def test_an_export_needs_no_torch(pair, tmp_path):
    import subprocess
    import sys

    for entry in ("model", "optimizer"):
        program = (
            "import sys; from trainkit.cli import main; code = main(sys.argv[1:]); "
            "sys.exit(code or 'torch' in sys.modules)"
        )
        arguments = ("checkpoint", "export", pair / "sharded", tmp_path / entry, "--entry", entry)
        subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=120)


def test_inspect_shows_the_whole(pair):
    found = inspect(*newest_of(pair / "sharded"))
    shown = {}
    for entry in found.entries:
        for document in entry.documents:
            for name, tensor in document.tensors.items():
                shown[entry.name, name] = (tensor.dtype, tensor.shape, tensor.num_bytes)
    assert shown["model", "0.weight"] == ("F32", (7, 5), 140)
    assert shown["optimizer", '["model.2.weight", "exp_avg"]'] == ("F32", (3, 7), 84)
    assert not found.problems


def test_the_same_state_in_parts_and_whole_does_not_differ(pair, tmp_path):
    sharded, bare = (Side.open(*newest_of(pair / name)) for name in ("sharded", "bare"))
    assert [*compare(sharded, bare, ("model", "optimizer"))] == []
    assert [*compare(sharded, sharded)] == []
    run_ranks(two_steps, 2, str(tmp_path), preload=PRELOAD)
    steps = [Side.open(sharded.storage.__class__(tmp_path), folder) for folder in folders(tmp_path)]
    changes = [*compare(*steps)]
    parameters = {change.name for change in changes if change.entry == "model"}
    assert parameters == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert {(c.what, c.how) for c in changes} == {("tensor", "values")}
    assert len([c for c in changes if c.entry == "optimizer"]) == 12  # step and moments of four
    assert not [c for c in changes if c.name.startswith("parts")]


def folders(root):
    from trainkit.checkpoint.format.layout import StepFolder

    return [StepFolder.parse(path.name) for path in sorted(root.glob("step-*"))]


def flip(step_folder, rank):
    """Change one byte of the first tensor that a rank has saved, and return the file's name."""
    file = step_folder / "ranks" / f"rank{rank:05d}.state.safetensors"
    data = bytearray(file.read_bytes())
    data[8 + int.from_bytes(data[:8], "little")] ^= 1
    file.write_bytes(data)
    return file.name


def test_an_export_of_damage_leaves_nothing(pair, tmp_path):
    import shutil

    shutil.copytree(pair / "sharded", tmp_path / "sharded")
    name = flip(*(tmp_path / "sharded").glob("step-*"), 1)
    with pytest.raises(CheckpointDamagedError, match=name):
        export(*newest_of(tmp_path / "sharded"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def two_steps(folder):
    with ranks_here() as communicator:
        model, optimizer = sharded_run(1, communicator.world_size)
        state = {"model": model, "optimizer": optimizer}
        manager = CheckpointManager(folder, state, communicator=communicator, options=HERE)
        for step in (1, 2):
            train(model, optimizer, 1)
            manager.save(step, blocking=True)
        manager.close()


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


def saving_without_shapes(folder):
    """As versions did that told the shape of a part in its file alone."""
    from trainkit.checkpoint.adapters.torch import modules, optimizers, sharded

    def own_part(tensor):
        part = sharded.own_part(tensor)
        return part and {key: value for key, value in part.items() if key != "shape"}

    modules.own_part = optimizers.own_part = own_part
    return saving_ranks(folder)


@pytest.mark.world_size(2)
def test_parts_that_do_not_tell_their_shape(tmp_path):
    expected = run_ranks(saving_without_shapes, 2, str(tmp_path), preload=PRELOAD)[0].value
    assert restored_bare(str(tmp_path)) == expected
