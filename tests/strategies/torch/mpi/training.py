"""Run on ranks of mpirun: python training.py WHAT FOLDER, and what is told by its output."""

import json
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import trainkit
from trainkit.strategies.torch.mpi import Mpi
from trainkit.strategies.torch.mpi.group import MpiGroup
from trainkit.strategies.torch.mpi.options import MpiOptions


def net() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Linear(32, 300),
        torch.nn.Tanh(),
        torch.nn.Linear(300, 300),
        torch.nn.Tanh(),
        torch.nn.Linear(300, 4),
    )


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The global one: 24 rows."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(24, 32, generator=generator)
    return x, torch.randn(24, 4, generator=generator)


def train(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range, r: int, n: int
) -> list[float]:
    """Train on this rank's rows of each batch; the losses over all rows."""
    losses = []
    for step in steps:
        x, y = (part[r::n] for part in batch(step))
        loss = torch.nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total = loss.detach().clone()
        if n > 1:
            dist.all_reduce(total)
        losses.append(total.item() / n)
    return losses


def by_one_process() -> tuple[list[float], dict[str, torch.Tensor]]:
    model = net()
    losses = train(model, torch.optim.SGD(model.parameters(), 0.2, 0.9), range(8), 0, 1)
    return losses, model.state_dict()


def close(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rtol: float = 1e-4
) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=rtol, atol=rtol / 10)


def ddp(ctx: trainkit.Context, folder: str) -> None:
    """Equal to one process on the same batches; gradients lie in memory that ranks share."""
    losses, weights = by_one_process()
    model = ctx.setup(net())
    assert isinstance(model, DistributedDataParallel)
    found = train(
        model, torch.optim.SGD(model.parameters(), 0.2, 0.9), range(8), ctx.rank, ctx.world_size
    )
    torch.testing.assert_close(found, losses, rtol=1e-4, atol=1e-6)
    close(model.module.state_dict(), weights)
    largest = max(model.parameters(), key=torch.numel)
    assert largest.grad.untyped_storage().is_shared() is (sys.argv[3] == "shared")
    with ctx.no_sync(model):
        model(batch(99)[0][ctx.rank :: ctx.world_size]).sum().backward()
    seen = [torch.empty_like(largest.grad) for _ in range(ctx.world_size)]
    dist.all_gather(seen, largest.grad)
    assert not torch.equal(seen[0], seen[1]), "no_sync has reduced"


def in_bf16(ctx: trainkit.Context, folder: str) -> None:
    losses, _ = by_one_process()
    model = ctx.setup(net())
    found = train(
        model, torch.optim.SGD(model.parameters(), 0.2, 0.9), range(8), ctx.rank, ctx.world_size
    )
    torch.testing.assert_close(found, losses, rtol=0.03, atol=0.0)
    assert found != losses
    weights = [None] * ctx.world_size
    dist.all_gather_object(weights, [p.detach() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def fsdp(ctx: trainkit.Context, folder: str) -> None:
    """FSDP2 on a mesh of MPI groups; saved and restored by both, DCP's own and our manager."""
    losses, weights = by_one_process()

    def sharded(**options: object) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        mesh = init_device_mesh("cpu", (ctx.world_size,))
        assert isinstance(mesh.get_group(), MpiGroup)
        model = net()
        for layer in model:
            if isinstance(layer, torch.nn.Linear):
                fully_shard(layer, mesh=mesh, **options)
        fully_shard(model, mesh=mesh, **options)
        return model, torch.optim.SGD(model.parameters(), 0.2, 0.9)

    model, optimizer = sharded()
    found = train(model, optimizer, range(4), ctx.rank, ctx.world_size)
    state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": state, "optimizer": optimizer_state}, checkpoint_id=f"{folder}/dcp")
    manager = ctx.checkpoints(f"{folder}/ours", model=model, optimizer=optimizer)
    manager.save(4)
    manager.wait()
    found += train(model, optimizer, range(4, 8), ctx.rank, ctx.world_size)
    torch.testing.assert_close(found, losses, rtol=1e-4, atol=1e-6)
    close({k: v.full_tensor() for k, v in model.state_dict().items()}, weights)

    model, optimizer = sharded()
    state, optimizer_state = get_state_dict(model, optimizer)
    dcp.load({"model": state, "optimizer": optimizer_state}, checkpoint_id=f"{folder}/dcp")
    set_state_dict(model, optimizer, model_state_dict=state, optim_state_dict=optimizer_state)
    again = train(model, optimizer, range(4, 8), ctx.rank, ctx.world_size)
    assert again == found[4:]

    model, optimizer = sharded()
    other = ctx.checkpoints(f"{folder}/ours", model=model, optimizer=optimizer)
    assert other.restore_latest() == 4
    assert train(model, optimizer, range(4, 8), ctx.rank, ctx.world_size) == found[4:]

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
    model, optimizer = sharded(mp_policy=policy)
    torch.testing.assert_close(
        train(model, optimizer, range(4), ctx.rank, ctx.world_size), losses[:4], rtol=0.05, atol=0.0
    )


def asynchronous(ctx: trainkit.Context, folder: str) -> None:
    """DCP saves on a group of its own, from a thread, while training goes on."""
    model = ctx.setup(net())
    optimizer = torch.optim.SGD(model.parameters(), 0.2)
    beside = dist.new_group()
    for step in range(3):
        saving = dcp.async_save(
            {"model": model.state_dict()}, checkpoint_id=f"{folder}/{step}", process_group=beside
        )
        train(model, optimizer, range(5 * step, 5 * step + 5), ctx.rank, ctx.world_size)
        saving.result()
    dist.destroy_process_group(beside)


def tail(ctx: trainkit.Context, folder: str) -> None:
    """Rank 1 has work left when rank 0 is done."""
    train(ctx.setup(net()), torch.optim.SGD(net().parameters(), 0.2), range(2), ctx.rank, 2)
    if ctx.rank == 1:
        time.sleep(5)
        _write(Path(folder, "tail"), "done")


def sparse(ctx: trainkit.Context, folder: str) -> None:
    ctx.setup(torch.nn.Embedding(10, 3, sparse=True))


def loops(ctx: trainkit.Context, folder: str, *, fault: str) -> None:
    """Train for minutes; rank 1 says when, and does something about it."""
    Path(folder, f"rank-{ctx.rank}.pid").write_text(str(os.getpid()))
    model, progress = ctx.setup(net()), trainkit.Progress()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    checkpoints = ctx.checkpoints(f"{folder}/saved", model=model, progress=progress)
    began = checkpoints.restore_latest() or 0
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        train(model, optimizer, range(progress.step, progress.step + 1), ctx.rank, ctx.world_size)
        progress.step += 1
        if progress.step == began + 5:
            if ctx.rank == 1:
                _write(Path(folder, "started"), "yes")
                _be(fault, folder)
            elif fault == "mismatch":
                dist.all_reduce(torch.ones(20_000))
            elif fault == "short":
                dist.send(torch.ones(100), 1)
        if fault == "resume" and began:
            print(json.dumps({"began": began}), flush=True)
            return
        checkpoints.step(progress.step)


def _be(fault: str, folder: str) -> None:
    if fault == "raise":
        raise ValueError("rank 1 has had enough")
    if fault == "mismatch":
        dist.all_reduce(torch.ones(30_000))
    if fault == "short":
        dist.recv(torch.ones(50), 0)
    if fault == "leave":
        os._exit(0)
    if fault == "sleep":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(600)


def connect_alone() -> None:
    """On a rank that torchrun started."""
    with trainkit.init(strategy="torch:mpi"):
        pass


def train_alone(folder: str) -> tuple[str, bool]:
    """As a job of one."""
    with trainkit.init(strategy="torch:mpi") as ctx:
        model = ctx.setup(net())
        train(model, torch.optim.SGD(model.parameters(), 0.2), range(2), 0, 1)
        assert ctx.all_reduce(3, "sum") == 3
    return "ddp", "mpi4py.MPI" in sys.modules


def _write(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").replace(path)


CHECKS = {check.__name__: check for check in (ddp, in_bf16, fsdp, asynchronous, tail, sparse)}


def main(what: str, folder: str, way: str = "shared") -> None:
    options = MpiOptions(shared_memory=way == "shared")
    strategy = Mpi(options=options, wire="bf16" if what == "in_bf16" else "exact")
    check = CHECKS.get(what) or partial(loops, fault=what)
    trainkit.run(partial(_run, check, folder), strategy=strategy)
    if what in CHECKS:
        print("all ok", flush=True)


def _run(check, folder, ctx):
    check(ctx, folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
