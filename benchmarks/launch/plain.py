"""A training of torch alone: started by ``trainkit launch`` and torchrun, the very same file.

    torchrun --standalone --nproc-per-node 2 benchmarks/launch/plain.py FOLDER

Ranks meet, add up a number, and train a small network for ``--steps`` after it.
"""

import argparse
import os

import torch
import torch.distributed as dist

from benchmarks.launch.stamps import stamp


def main() -> None:
    """What each rank does."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="where moments are noted")
    parser.add_argument("--steps", type=int, default=0, help="(default: %(default)s)")
    args = parser.parse_args()
    stamp(args.folder, "began")
    dist.init_process_group("gloo")
    total = torch.ones(1)
    dist.all_reduce(total)
    stamp(args.folder, "met")
    if int(total) != dist.get_world_size():
        raise ValueError(f"{dist.get_world_size()} ranks add up to {float(total)}")
    # The attempt that is to be killed trains on until that happens.
    endless = args.steps and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
    train(args.folder, 1_000_000 if endless else args.steps)
    dist.destroy_process_group()


def train(folder: str, steps: int) -> None:
    """Fit a line, data parallel."""
    if not steps:
        return
    torch.manual_seed(dist.get_rank())
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(steps):
        inputs = torch.randn(32, 64)
        optimizer.zero_grad()
        (model(inputs) - inputs.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
        if step == 2:
            stamp(folder, "trained")


if __name__ == "__main__":
    main()
