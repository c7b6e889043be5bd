"""MNIST digits, from one process to a job of many pods, with one and the same file.

    python -m trainkit.recipes.mnist                                     # one rank
    torchrun --nproc-per-node=2 -m trainkit.recipes.mnist                # two ranks on this host
    mpirun -n 2 python -m trainkit.recipes.mnist                         # the same under MPI
    kubectl apply -f recipes/mnist/pytorchjob.yaml                       # pods of an operator

Without --data-dir and --data-url it trains on 8,000 digits that come with the package and
tests on 2,000 others, with no network. Fashion-MNIST files work through the same flags.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

import trainkit
from trainkit.data import MnistDataset
from trainkit.recipes._config import RecipeConfig, run_recipe
from trainkit.recipes._torch import count_right, export, finish, say, total_steps
from trainkit.recipes._trace import StepTrace

__all__ = ["Config", "Net", "main"]


@dataclass(frozen=True, kw_only=True)
class Config(RecipeConfig):
    """Flags of the MNIST recipe."""

    epochs: int = 6
    """Passes over the training data."""
    lr: float = 0.01
    """Peak learning rate of Adam, reached after a quarter of the steps; never scaled by the
    number of ranks."""
    data_dir: str | None = None
    """Folder with MNIST's four IDX files, plain or gzipped; also torchvision's and Debian's
    layouts."""
    data_url: str | None = None
    """Mirrors to download the files from, separated by commas; downloaded once a host."""


class Net(nn.Module):
    """Two strided convolutions and two linear layers: 54,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, kernel_size=5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(8, 16, kernel_size=5, stride=2, padding=2)
        self.hidden = nn.Linear(16 * 7 * 7, 64)
        self.scores = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images [N, 1, 28, 28], normalised → scores [N, 10]."""
        x = functional.relu(self.conv1(images))
        x = functional.relu(self.conv2(x))
        x = functional.relu(self.hidden(x.flatten(1)))
        scores: torch.Tensor = self.scores(x)
        return scores


def main(ctx: trainkit.Context, config: Config) -> float:
    """Train and test; returns the test accuracy, the same on all ranks."""
    if ctx.device.type == "cpu":
        # Tensors this small gain little from a second thread, and threads that wait for each
        # other on cores shared with other pods make every step many times slower.
        torch.set_num_threads(1)
    train_set, test_set = _load(config, train=True), _load(config, train=False)
    net = Net()
    if config.compile:
        net.compile()
    model = ctx.setup(net)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    loader = ctx.setup_dataloader(DataLoader(train_set, config.batch_size, shuffle=True))
    progress = trainkit.Progress()
    checkpoints = ctx.checkpoints(
        save=config.checkpoint_every,
        model=model,
        optimizer=optimizer,
        loader=loader,
        progress=progress,
    )
    checkpoints.restore_latest(init_from=config.init_from)
    first, steps = progress.step, total_steps(config.epochs, len(loader), config.max_steps)
    _introduce(ctx, config, train_set, first, steps)
    with StepTrace(config.trace, ctx.rank) as trace:
        for progress.epoch in range(progress.epoch, config.epochs):  # noqa: B020
            if progress.step >= steps:
                break
            for images, labels, ids in loader:
                _set_lr(optimizer, config.lr, progress.step / steps)
                loss = functional.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                progress.step += 1
                if trace.enabled:
                    trace.step(progress.step, progress.epoch, ids.tolist(), loss.item())
                ctx.log(progress.step, steps=steps, epoch=progress.epoch, loss=loss)
                checkpoints.step(progress.step)
                if progress.step >= steps:
                    break
    checkpoints.save_unsaved()  # a kill during the test then repeats the test alone
    accuracy = count_right(ctx, model, DataLoader(test_set, 1000)) / len(test_set)
    export(ctx, net, config.output_dir)
    say(ctx, f"test accuracy {accuracy:.2%} on {len(test_set):,} images ({test_set.source})")
    finish(ctx, step=progress.step, steps_run=progress.step - first, test_accuracy=accuracy)
    return accuracy


def _load(config: Config, *, train: bool) -> MnistDataset:
    return MnistDataset.load(
        train=train, data_dir=config.data_dir, data_url=config.data_url, with_ids=True
    )


def _introduce(
    ctx: trainkit.Context, config: Config, train_set: MnistDataset, first: int, steps: int
) -> None:
    if first >= steps:
        say(ctx, f"nothing left: step {first} of {steps}")
        return
    say(
        ctx,
        f"{len(train_set):,} images ({train_set.source}): {steps - first} steps of "
        f"{config.batch_size} x {ctx.world_size} = {config.batch_size * ctx.world_size} images, "
        f"{config.precision} on {ctx.device}",
    )


def _set_lr(optimizer: torch.optim.Optimizer, peak: float, done: float) -> None:
    """One cycle: up over a quarter of the run, then down along a cosine.

    Args:
        optimizer: whose learning rate to set.
        peak: the highest learning rate.
        done: share of the run, 0 … 1. A pure function of the step has no state to restore.
    """
    rise = min(1.0, 0.04 + done / 0.25)
    fall = 0.5 * (1 + math.cos(math.pi * max(0.0, done - 0.25) / 0.75))
    for group in optimizer.param_groups:
        group["lr"] = peak * rise * fall


if __name__ == "__main__":
    run_recipe(main, Config, __doc__)
