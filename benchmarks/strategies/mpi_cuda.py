"""CUDA tensors over an MPI that cannot read them: pinned and pipelined, against plain copies.

    python -m benchmarks.strategies.mpi_cuda       # needs a GPU; says so and ends without one

Two ranks on one device, where NCCL refuses to connect them. Not measured yet: the script has been
run on machines without a GPU alone.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from benchmarks.rounds import Spread, machine, print_table, warn_if_busy
from benchmarks.strategies.mpi import find_mpirun

TARGET, OF_LIMIT = 2.5, 0.6
NAIVE, STAGED, COPIES = "naive copy", "mpi, staged", "pinned copies"
MIB = 100


def main(argv: Sequence[str] | None = None) -> None:
    """Start two ranks on the first device, and print how they compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=11, help="(default: %(default)s)")
    parser.add_argument("--rank", action="store_true", help="be a rank, under mpirun")
    args = parser.parse_args(argv)
    if args.rank:
        _rank(args.rounds)
        return
    import torch

    if not torch.cuda.is_available():
        print("skipped: there is no GPU here (torch.cuda.is_available() is False)")
        return
    warn_if_busy()
    ranks = [sys.executable, "-m", "benchmarks.strategies.mpi_cuda", "--rank"]
    line = [find_mpirun(), "--allow-run-as-root", "--oversubscribe", "-n", "2", *ranks]
    done = subprocess.run(
        [*line, "--rounds", str(args.rounds)], stdout=subprocess.PIPE, text=True, env=os.environ
    )
    if done.returncode:
        raise SystemExit(f"the ranks ended with {done.returncode}:\n{done.stdout}")
    rounds = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[")))
    print(f"{machine()}, {torch.cuda.get_device_name(0)}; {args.rounds} rounds\n")
    rows = [
        [
            name,
            Spread.of([one[name] for one in rounds]).show(".1f", 1e3),
            Spread.of([one[NAIVE] / one[name] for one in rounds]).show(".2f"),
        ]
        for name in (NAIVE, STAGED, COPIES)
    ]
    print_table([f"all-reduce of {MIB} MiB on the device", "ms", "naive / this"], rows)
    ratio = Spread.of([one[NAIVE] / one[STAGED] for one in rounds]).median
    share = Spread.of([one[COPIES] / one[STAGED] for one in rounds]).median
    for text, value, target in (("× naive", ratio, TARGET), ("of the limit", share, OF_LIMIT)):
        met = "met" if value >= target else "missed"
        print(f"\nstaged: {value:.2f} {text}; target ≥ {target}: {met}")


def _rank(rounds: int) -> None:
    import torch
    import torch.distributed as dist
    from mpi4py import MPI

    from trainkit.strategies.torch.mpi.group import BACKEND
    from trainkit.strategies.torch.mpi.options import MpiOptions
    from trainkit.strategies.torch.mpi.strategy import register_backend

    world = MPI.COMM_WORLD
    torch.cuda.set_device(0)
    register_backend(world.Dup(), MpiOptions())
    path = world.bcast(f"/tmp/mpi-cuda-{os.getpid()}")
    store = dist.FileStore(path, world.size)
    dist.init_process_group(BACKEND, store=store, rank=world.rank, world_size=world.size)
    tensor = torch.ones(MIB << 18, device="cuda")
    pinned = torch.ones(MIB << 18, pin_memory=True)

    def naive() -> None:
        host = tensor.cpu()
        world.Allreduce(MPI.IN_PLACE, host.numpy(), MPI.MAX)
        tensor.copy_(host)

    def copies() -> None:
        pinned.copy_(tensor, non_blocking=True)
        tensor.copy_(pinned, non_blocking=True)

    contenders: dict[str, Callable[[], object]] = {
        NAIVE: naive,
        STAGED: lambda: dist.all_reduce(tensor, dist.ReduceOp.MAX),
        COPIES: copies,
    }
    turns, names, found = random.Random(0), list(contenders), []
    for _ in range(rounds + 1):  # the first warms up
        turns.shuffle(names)
        one = {}
        for name in names:
            world.Barrier()
            began = time.perf_counter()
            contenders[name]()
            torch.cuda.synchronize()
            one[name] = world.allreduce(time.perf_counter() - began, MPI.MAX)
        found.append(one)
    if world.rank == 0:
        print(json.dumps(found[1:]), flush=True)
    dist.destroy_process_group()
    if world.rank == 0:
        os.unlink(path)


if __name__ == "__main__":
    main()
