"""MNIST digits, from one process to a job of many pods, with one and the same file.

    python -m trainkit.recipes.mnist                                     # one rank
    torchrun --nproc-per-node=2 -m trainkit.recipes.mnist                # two ranks on this host
    mpirun -n 2 python -m trainkit.recipes.mnist                         # the same under MPI
    kubectl apply -f recipes/mnist/pytorchjob.yaml                       # pods of an operator

Without --data-dir and --data-url it trains on 8,000 digits that come with the package and
tests on 2,000 others, with no network. Fashion-MNIST files work through the same flags.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

import trainkit
from trainkit.data.mnist import MnistDataset, load_mnist
from trainkit.recipes._config import RecipeConfig, run_recipe
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
    data = load_mnist(config.data_dir, config.data_url)
    net = Net()
    model = ctx.setup(torch.compile(net) if config.compile else net)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    loader = ctx.setup_dataloader(_loader(data.train, config.batch_size, shuffle=True))
    steps = _total_steps(config, len(loader))
    progress = trainkit.Progress()
    checkpoints = ctx.checkpoints(
        save=config.checkpoint_every,
        model=model,
        optimizer=optimizer,
        loader=loader,
        progress=progress,
    )
    checkpoints.restore_latest()
    first = progress.step
    if first >= steps:
        _say(ctx, f"nothing left: step {first} of {steps}")
    else:
        global_batch = config.batch_size * ctx.world_size
        _say(ctx, f"{steps - first} steps of {global_batch} samples on {ctx.world_size} rank(s)")
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
    accuracy = test(ctx, model, data.test)
    if config.output_dir is not None and ctx.rank == 0:
        export(net, config.output_dir)
    _say(ctx, f"test accuracy {accuracy:.2%} on {len(data.test):,} images, {data.source}")
    done = {
        "event": "done",
        "step": progress.step,
        "steps_run": progress.step - first,
        "test_accuracy": accuracy,
    }
    _say(ctx, json.dumps(done))
    return accuracy


@torch.no_grad()
def test(ctx: trainkit.Context, model: nn.Module, images: MnistDataset) -> float:
    """Share of ``images`` that ``model`` tells right; each counts once, on any number of ranks."""
    model.eval()
    loader = ctx.setup_dataloader(_loader(images, 1000), train=False)
    right = torch.zeros((), device=ctx.device)
    for x, y, _ in loader:
        right += ((model(x).argmax(1) == y) & loader.mask).sum()
    model.train()
    return float(ctx.all_reduce(right, "sum")) / len(images)


def export(net: nn.Module, folder: str) -> None:
    """Write the weights as ``model.safetensors``."""
    from safetensors.torch import save_file

    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(net.state_dict(), Path(folder) / "model.safetensors")


def _loader(images: MnistDataset, batch_size: int, *, shuffle: bool = False) -> DataLoader[object]:
    # The dataset hands out whole batches, so there is nothing left to collate.
    return DataLoader(images, batch_size, shuffle=shuffle, collate_fn=_as_it_is)


def _as_it_is(batch: object) -> object:
    return batch


def _total_steps(config: Config, steps_an_epoch: int) -> int:
    by_epochs = config.epochs * steps_an_epoch
    return by_epochs if config.max_steps is None else min(by_epochs, config.max_steps)


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


def _say(ctx: trainkit.Context, text: str) -> None:
    if ctx.rank == 0:
        print(text, flush=True)


if __name__ == "__main__":
    run_recipe(main, Config, __doc__)
