"""ImageNet with the models of torchvision, by name.

    torchrun --nproc-per-node=8 -m trainkit.recipes.imagenet --data-dir /data/imagenet
    python -m trainkit.recipes.imagenet --synthetic --model resnet18 --image-size 64 \\
        --max-steps 5 --batch-size 8 --workers 0                         # a small try on a CPU

--data-dir holds ``train`` and ``val``, each with one folder a class.
"""

import time
from dataclasses import dataclass
from math import cos, pi
from typing import Any, Literal

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

import trainkit
from trainkit.data import ImageDataset, SyntheticImages
from trainkit.errors import DependencyError, UsageError
from trainkit.recipes._config import RecipeConfig, run_recipe
from trainkit.recipes._torch import count_right, export, finish, say, total_steps
from trainkit.recipes._trace import StepTrace

__all__ = ["Config", "main"]


@dataclass(frozen=True, kw_only=True)
class Config(RecipeConfig):
    """Flags of the ImageNet recipe."""

    epochs: int = 90
    """Passes over the training data."""
    batch_size: int = 256
    """Images a rank and step; the global batch is this times the number of ranks."""
    lr: float = 0.1
    """Peak learning rate of SGD for a global batch of 256; never scaled by the number of ranks."""
    warmup_epochs: float = 5.0
    """Epochs over which the learning rate rises; it falls along a cosine afterwards."""
    weight_decay: float = 5e-5
    """L2 penalty of all parameters but biases and normalisations."""
    label_smoothing: float = 0.1
    """Share of each label that is spread over all classes."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of the model; parameters stay in fp32."""
    model: str = "resnet50"
    """Name of a classification model of torchvision."""
    image_size: int = 224
    """Pixels of a side, in training and in the test."""
    workers: int = 8
    """Loader processes a rank."""
    synthetic: bool = False
    """Train on random images instead of --data-dir."""
    synthetic_images: int = 1_281_167
    """Training images of --synthetic; the test has 1/25 of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.synthetic and self.data_dir is None:
            raise UsageError(
                "expected --data-dir with the folders train and val, or --synthetic for random "
                "images; found neither"
            )


def main(ctx: trainkit.Context, config: Config) -> float:
    """Train and test; returns the top-1 test accuracy, the same on all ranks."""
    train_set, test_set, num_classes = _data(config)
    net = _model(config.model, num_classes).to(memory_format=torch.channels_last)
    if config.compile:
        net.compile()
    model = ctx.setup(net)
    optimizer = torch.optim.SGD(
        _parameter_groups(net, config.weight_decay), lr=config.lr, momentum=0.9, nesterov=True
    )
    loader = ctx.setup_dataloader(_loader(ctx, config, train_set, shuffle=True))
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
    warmup = max(1, round(config.warmup_epochs * len(loader)))
    if first >= steps:
        say(ctx, f"nothing left: step {first} of {steps}")
    started = time.monotonic()
    with StepTrace(config.trace, ctx.rank) as trace:
        for progress.epoch in range(progress.epoch, config.epochs):  # noqa: B020
            if progress.step >= steps:
                break
            for images, labels, ids in loader:
                images = images.to(memory_format=torch.channels_last)
                _set_lr(optimizer, config.lr, progress.step, warmup, steps)
                scores = model(images)
                loss = functional.cross_entropy(
                    scores, labels, label_smoothing=config.label_smoothing
                )
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
    rate = (progress.step - first) * config.batch_size * ctx.world_size / _since(ctx, started)
    checkpoints.save_unsaved()
    accuracy = count_right(ctx, model, _loader(ctx, config, test_set)) / len(test_set)
    export(ctx, net, config.output_dir)
    say(ctx, f"top-1 test accuracy {accuracy:.2%}, {rate:.1f} images/s on {ctx.world_size} rank(s)")
    finish(
        ctx,
        step=progress.step,
        steps_run=progress.step - first,
        test_accuracy=accuracy,
        images_per_second=round(rate, 1),
    )
    return accuracy


def _data(config: Config) -> tuple[Dataset[Any], Any, int]:
    if config.synthetic or config.data_dir is None:
        size, count = config.image_size, config.synthetic_images
        train = SyntheticImages(count, image_size=size, with_ids=True)
        test = SyntheticImages(max(1, count // 25), image_size=size, with_ids=True)
        return train, test, 1000
    folders = ImageDataset.load(
        config.data_dir, train=True, image_size=config.image_size, with_ids=True
    )
    held_out = ImageDataset.load(
        config.data_dir,
        train=False,
        image_size=config.image_size,
        classes=folders.classes,
        with_ids=True,
    )
    return folders, held_out, len(folders.classes)


def _model(name: str, num_classes: int) -> torch.nn.Module:
    try:
        from torchvision import models
    except ImportError:
        raise DependencyError(
            'this recipe needs torchvision: pip install "trainkit[imagenet]"'
        ) from None
    known = models.list_models(module=models)
    if name not in known:
        raise UsageError(f"--model {name}: torchvision has {', '.join(known)}")
    model: torch.nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    return model


def _loader(
    ctx: trainkit.Context, config: Config, images: Dataset[Any], *, shuffle: bool = False
) -> DataLoader[Any]:
    workers = 0 if config.synthetic else config.workers
    return DataLoader(
        images,
        config.batch_size,
        shuffle=shuffle,
        num_workers=workers,
        persistent_workers=workers > 0 and shuffle,
        pin_memory=ctx.device.type == "cuda",
    )


def _parameter_groups(net: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Biases and normalisations apart: decaying them costs accuracy and regularises nothing."""
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others}]


def _set_lr(
    optimizer: torch.optim.Optimizer, peak: float, step: int, warmup: int, steps: int
) -> None:
    """Linear warm-up, then half a cosine; a pure function of the step has no state to restore."""
    rise = min(1.0, (step + 1) / warmup)
    fall = 0.5 * (1 + cos(pi * max(0, step - warmup) / max(1, steps - warmup)))
    for group in optimizer.param_groups:
        group["lr"] = peak * rise * fall


def _since(ctx: trainkit.Context, started: float) -> float:
    if ctx.device.type == "cuda":
        torch.cuda.synchronize()  # the device may be behind its host
    return time.monotonic() - started


if __name__ == "__main__":
    run_recipe(main, Config, __doc__)
