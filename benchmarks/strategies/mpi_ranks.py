"""What a rank of ``benchmarks.strategies.mpi`` runs; rank 0 prints one line of JSON."""

import json
import random
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import trainkit
from benchmarks.strategies.mpi import (
    ALONE,
    COPY,
    DDP_ALONE,
    DDP_GLOO,
    DDP_MPI,
    GLOO,
    KEPT,
    PLAIN,
    STAGED,
)

SIZES = {"1 KiB": 1 << 10, "64 KiB": 1 << 16, "1 MiB": 1 << 20, "16 MiB": 1 << 24}
SIZES["100 MiB"] = 100 << 20


def main(ctx: trainkit.Context) -> None:
    """Measure; both ranks must take the same turns."""
    rounds, turns = int(sys.argv[1]), random.Random(0)
    gloo = dist.new_group(backend="gloo")
    reductions = {
        size: _rounds(
            _reducers(nbytes, gloo), rounds, turns, max(1, min(100, (32 << 20) // nbytes))
        )
        for size, nbytes in SIZES.items()
    }
    steps = _rounds(_steps(ctx, gloo), rounds, turns, 3)
    if ctx.rank == 0:
        print(json.dumps({"reductions": reductions, "steps": steps}), flush=True)


def _rounds(
    contenders: dict[str, Callable[[], None]], rounds: int, turns: random.Random, times: int
) -> list[dict[str, float]]:
    """Seconds of one call of each, a round, on the slower rank, for which a job waits."""
    names = list(contenders)
    for name in names:
        for _ in range(3):
            contenders[name]()
    found = []
    for _ in range(rounds):
        turns.shuffle(names)
        one = {}
        for name in names:
            dist.barrier()
            began = time.perf_counter()
            for _ in range(times):
                contenders[name]()
            took = torch.tensor((time.perf_counter() - began) / times, dtype=torch.float64)
            dist.all_reduce(took, dist.ReduceOp.MAX)
            one[name] = took.item()
        found.append(one)
    return found


def _reducers(nbytes: int, gloo: dist.ProcessGroup) -> dict[str, Callable[[], None]]:
    from mpi4py import MPI

    tensor, kept, other = (torch.ones(nbytes // 4) for _ in range(3))
    dist.group.WORLD.average(kept, keep=True).wait()
    return {
        GLOO: lambda: dist.all_reduce(tensor, dist.ReduceOp.MAX, group=gloo),
        STAGED: lambda: dist.all_reduce(tensor, dist.ReduceOp.MAX),
        KEPT: lambda: dist.all_reduce(kept, dist.ReduceOp.MAX),
        ALONE: lambda: MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, tensor.numpy(), MPI.MAX),
        COPY: lambda: other.copy_(tensor),
    }


def _steps(ctx: trainkit.Context, gloo: dist.ProcessGroup) -> dict[str, Callable[[], None]]:
    """Forward, backward and the release of gradients, as in a loop; no optimizer."""

    def net() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(*[torch.nn.Linear(1024, 1024) for _ in range(8)])

    def step(model: torch.nn.Module) -> Callable[[], None]:
        x = torch.randn(8, 1024)

        def run() -> None:
            model(x).sum().backward()
            model.zero_grad()

        return run

    alone = DistributedDataParallel(net(), gradient_as_bucket_view=True)
    alone.register_comm_hook(None, _nothing)
    return {
        PLAIN: step(net()),
        DDP_ALONE: step(alone),
        DDP_MPI: step(ctx.setup(net())),
        DDP_GLOO: step(
            DistributedDataParallel(net(), process_group=gloo, gradient_as_bucket_view=True)
        ),
    }


def _nothing(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


if __name__ == "__main__":
    trainkit.run(main, strategy="mpi")
