"""The usual MNIST example with one or more things of trainkit's recipe in place of its own.

    python -m benchmarks.mnist.ladder --small-net --in-memory --one-cycle

Without switches it is ``benchmarks.mnist.usual``; with all of them it is the recipe's training as
a plain script, without trainkit's runtime around it. ``benchmarks.mnist.race --ladder`` climbs it.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks.mnist import usual

GOAL = usual.GOAL


def main() -> None:
    """Train as the switches say until 97 % of the test images are told right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small-net", action="store_true", help="the recipe's network")
    parser.add_argument("--in-memory", action="store_true", help="whole batches from memory")
    parser.add_argument("--one-cycle", action="store_true", help="Adam along one cycle")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    train_loader, test_loader = _in_memory(args.seed) if args.in_memory else _items()
    model = _small_net() if args.small_net else usual.Net()
    if args.one_cycle:
        _one_cycle(model, train_loader)
        usual.evaluate(model, test_loader)
    else:
        _until_there(model, train_loader, test_loader)


def _items() -> tuple[Any, Any]:
    """Images as objects that torchvision turns into tensors one by one."""
    return usual.loaders()


def _in_memory(seed: int) -> tuple[Any, Any]:
    """Digits as tensors; a batch is one ``index_select``."""
    from trainkit.data.torch import MnistDataset, ShardedDataLoader

    train_set, test_set = (MnistDataset.load(train=train) for train in (True, False))
    train_loader = ShardedDataLoader(DataLoader(train_set, 64, shuffle=True), seed=seed)
    return train_loader, ShardedDataLoader(DataLoader(test_set, 1000), train=False)


def _small_net() -> nn.Module:
    """The recipe's network, on one thread as the recipe has it."""
    from trainkit.recipes.mnist import Net

    torch.set_num_threads(1)
    return Net()


def _until_there(model: nn.Module, train_loader: Any, test_loader: Any) -> None:
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    for epoch in range(14):
        usual.train_epoch(model, train_loader, optimizer, epoch)
        if usual.evaluate(model, test_loader) >= GOAL:
            return
        schedule.step()


def _one_cycle(model: nn.Module, loader: Any) -> None:
    """The recipe's optimizer, learning rate and number of epochs; one test, after the last."""
    from trainkit.recipes import mnist

    config = mnist.Config()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    set_lr: Callable[[torch.optim.Optimizer, float, float], None] = mnist._set_lr
    step, steps = 0, config.epochs * len(loader)
    for _ in range(config.epochs):
        for images, labels in loader:
            set_lr(optimizer, config.lr, step / steps)
            loss = functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1


if __name__ == "__main__":
    main()
