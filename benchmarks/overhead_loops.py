"""The loops of ``benchmarks.overhead``, and one process that lets them take turns.

Its last line on stdout is a JSON object: seconds a step of each loop in each round.
"""

import argparse
import contextlib
import functools
import gc
import importlib.metadata
import json
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import trainkit
from benchmarks.rounds import shuffled_rounds

Loop = Iterator[None]
"""An endless training; each ``next`` is one step."""

BATCH, WIDTH, SAMPLES = 4, 8, 40_000
"""Epochs are long, so that what is measured are steps and not the starts of epochs."""


def data() -> DataLoader[tuple[torch.Tensor, ...]]:
    """A loader as a user would write it."""
    inputs, targets = torch.randn(SAMPLES, WIDTH), torch.randn(SAMPLES, WIDTH)
    return DataLoader(TensorDataset(inputs, targets), batch_size=BATCH, shuffle=True)


def model_and_optimizer() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model that costs next to nothing."""
    layers = (torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH))
    model = torch.nn.Sequential(*layers)
    return model, torch.optim.SGD(model.parameters(), lr=1e-3)


@functools.cache
def shared_model_and_optimizer() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """The same objects for the plain loop and trainkit's, which wraps neither at one rank.

    Where two models lie in memory makes one of them some µs faster than the other. Peers wrap or
    hook theirs, so they get their own.
    """
    return model_and_optimizer()


def plain(stack: contextlib.ExitStack) -> Loop:
    """Torch, and nothing else: the limit."""
    model, optimizer = shared_model_and_optimizer()
    loader = data()
    while True:
        for x, y in loader:
            loss = functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


@functools.cache
def context(stack: contextlib.ExitStack) -> trainkit.Context:
    """This process's one context, closed with ``stack``."""
    return stack.enter_context(trainkit.init())


def of_trainkit(stack: contextlib.ExitStack, *, log: bool = True) -> Loop:
    """All that a user of trainkit has in a loop; the policy of ten minutes is never due."""
    ctx = context(stack)
    model, optimizer = shared_model_and_optimizer()
    model = ctx.setup(model)
    loader = ctx.setup_dataloader(data())
    progress = trainkit.Progress()
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    checkpoints = ctx.checkpoints(folder, model=model, optimizer=optimizer, progress=progress)
    while True:
        for x, y in loader:
            loss = functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress.step += 1
            if log:
                ctx.log(progress.step, loss=loss)
            checkpoints.step(progress.step)
            yield


def ddp(stack: contextlib.ExitStack) -> Loop:
    """Torch's own wrapper, which most scripts keep on at one rank."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    stack.callback(dist.destroy_process_group)
    model, optimizer = model_and_optimizer()
    wrapped = DistributedDataParallel(model)
    loader = data()
    while True:
        for x, y in loader:
            loss = functional.mse_loss(wrapped(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def fabric(stack: contextlib.ExitStack) -> Loop:
    """Lightning Fabric: model, optimizer, loader and backward are its own."""
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(*model_and_optimizer())
    loader = fabric.setup_dataloaders(data())
    while True:
        for x, y in loader:
            loss = functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            yield


def accelerate(stack: contextlib.ExitStack) -> Loop:
    """Accelerate: model, optimizer, loader and backward are its own."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer, loader = accelerator.prepare(*model_and_optimizer(), data())
    while True:
        for x, y in loader:
            loss = functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            yield


LOOPS: dict[str, tuple[str, Callable[[contextlib.ExitStack], Loop]]] = {
    "plain torch": ("torch", plain),
    "plain torch again": ("torch", plain),
    "trainkit": ("trainkit", of_trainkit),
    "trainkit, no ctx.log": ("trainkit", functools.partial(of_trainkit, log=False)),
    "Lightning Fabric": ("lightning-fabric", fabric),
    "DDP, world size 1": ("torch", ddp),
    "Accelerate": ("accelerate", accelerate),
}
"""By name: the distribution that it needs, and what makes the loop."""


def main() -> None:
    """Let all loops that are installed take turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--core", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0)) if args.core is None else args.core})
    warnings.filterwarnings("ignore")
    with contextlib.ExitStack() as stack:
        loops: dict[str, Loop] = {}
        versions: dict[str, str] = {}
        # Who is made first lies elsewhere in memory: over the processes that averages out.
        for name in random.Random(args.seed).sample(list(LOOPS), len(LOOPS)):
            distribution, make = LOOPS[name]
            try:
                versions[name] = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
            loops[name] = make(stack)
        rounds = list(_measure(loops, args.rounds, args.steps, args.seed))
    missing = [name for name in LOOPS if name not in loops]
    sys.stdout.write(json.dumps({"rounds": rounds, "versions": versions, "missing": missing}))
    sys.stdout.write("\n")


def _measure(loops: dict[str, Loop], rounds: int, steps: int, seed: int) -> list[dict[str, float]]:
    def seconds_a_step(name: str) -> float:
        loop, turn = loops[name], range(steps)
        began = time.perf_counter()
        for _ in turn:
            next(loop)
        return (time.perf_counter() - began) / steps

    for name in loops:  # first steps set things up, and DDP lays out its buckets
        for _ in range(10):
            seconds_a_step(name)
    torch.set_num_threads(1)  # whoever changed it while setting up
    gc.collect()
    gc.freeze()  # what peers imported is not to be walked again and again, at everybody's cost
    names = [name for name in LOOPS if name in loops]
    return list(shuffled_rounds(names, rounds, seconds_a_step, seed=seed))


if __name__ == "__main__":
    main()
