"""The training of ``plain.py`` as a program of trainkit, with checkpoints where it is given steps.

trainkit launch --nproc-per-node 2 benchmarks/launch/with_run.py FOLDER
"""

import argparse
import os
from functools import partial

import torch

import trainkit
from benchmarks.launch.stamps import stamp


def main(ctx: trainkit.Context, *, folder: str, steps: int) -> None:
    """What each rank does."""
    total = ctx.all_reduce(1, "sum")
    stamp(folder, "met")
    if total != ctx.world_size:
        raise ValueError(f"{ctx.world_size} ranks add up to {total}")
    if not steps:
        return
    model = ctx.setup(torch.nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    progress = trainkit.Progress()
    saved = {"model": model, "optimizer": optimizer, "progress": progress}
    checkpoints = ctx.checkpoints(f"{folder}/checkpoints", save=100, keep=2, **saved)
    checkpoints.restore_latest()
    first = progress.step
    while progress.step < first + steps:
        inputs = torch.randn(32, 64)
        optimizer.zero_grad()
        (model(inputs) - inputs.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
        progress.step += 1
        if progress.step == first + 3:
            stamp(folder, "trained")
        checkpoints.step(progress.step)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", help="where moments are noted")
    parser.add_argument("--steps", type=int, default=0, help="(default: %(default)s)")
    given = parser.parse_args()
    stamp(given.folder, "began")
    # The attempt that is to be killed trains on until that happens.
    endless = given.steps and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
    wanted = 1_000_000 if endless else given.steps
    trainkit.run(partial(main, folder=given.folder, steps=wanted), seed=0)
