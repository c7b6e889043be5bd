"""Small training programs that ranks of the tests run as __main__."""

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset

import trainkit


def data(size=64):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(
        torch.randn(size, 4, generator=generator), torch.randn(size, 1, generator=generator)
    )


def learns(ctx):
    """Train a line, and return what ranks must agree on."""
    model = ctx.setup(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = ctx.setup_dataloader(DataLoader(data(), batch_size=8, shuffle=True))
    for x, y in loader:
        loss = torch.nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = [p.detach().flatten().tolist() for p in model.parameters()]
    return {"rank": ctx.rank, "world_size": ctx.world_size, "weights": weights}


def collectives(ctx):
    ctx.barrier("the start", timeout=60)
    vector = torch.full((3,), float(ctx.rank))
    mean = ctx.all_reduce(vector)
    return {
        "mean": mean.tolist(),
        "unchanged": vector.tolist(),
        "sum": ctx.all_reduce(ctx.rank + 1, "sum"),
        "max": ctx.all_reduce(float(ctx.rank), "max"),
        "mean_of_ints": ctx.all_reduce(ctx.rank + 1),
        "large": ctx.all_reduce(2**53 + ctx.rank, "sum"),
        "grad": ctx.all_reduce(torch.ones(1, requires_grad=True)).requires_grad,
        "object": ctx.broadcast_object({"from": ctx.rank}, src=1),
        "items": ctx.shard(range(5)),
    }


def accumulates(ctx):
    """Gradients of two micro-batches, with and without a needless all-reduce."""
    x = torch.full((1, 4), float(ctx.rank + 1))
    found = []
    for when in (False, True):
        torch.manual_seed(0)
        model = ctx.setup(torch.nn.Linear(4, 1))
        with ctx.no_sync(model, when=when):
            model(x).sum().backward()
        local = next(p.grad.flatten().tolist() for p in model.parameters())
        model(x).sum().backward()
        total = next(p.grad.flatten().tolist() for p in model.parameters())
        found.append((local, total))
    return found


def raises_on_rank_1(ctx):
    if ctx.rank == 1:
        raise ValueError("bad batch")
    ctx.all_reduce(torch.ones(1))


def seeds(ctx):
    return {"torch": torch.rand(1).item(), "init": torch.nn.Linear(2, 2).weight.sum().item()}


def leaves_early(ctx):
    sys.exit(0)


def returns_at_once(ctx):
    return ctx.rank


def call_while_rank_0_still_connects(folder):
    """Rank 0 is kept in its way into the group; True if nobody left it meanwhile."""
    left = Path(folder) / "left"
    connect, leave = dist.init_process_group, dist.destroy_process_group

    def connects_slowly(*args, **options):
        connect(*args, **options)
        deadline = time.monotonic() + 2
        while not left.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        kept.append(not left.exists())

    def leaves():
        left.touch()
        leave()

    kept = []
    if os.environ["RANK"] == "0":
        dist.init_process_group = connects_slowly
    else:
        dist.destroy_process_group = leaves
    trainkit.run(returns_at_once, strategy="ddp")
    return kept


def call(name, **options):
    """Run one of the above in this rank, as a script would."""
    options.setdefault("strategy", "torch:auto")
    return trainkit.run(globals()[name], **options)


def call_init(**options):
    options.setdefault("strategy", "torch:auto")
    with trainkit.init(**options) as ctx:
        return learns(ctx)
