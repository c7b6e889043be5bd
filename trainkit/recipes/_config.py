"""Flags that all recipes share, made from a dataclass by tyro."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import tyro

import trainkit
from trainkit.errors import UsageError

__all__ = ["RecipeConfig", "parse", "run_recipe"]

ConfigT = TypeVar("ConfigT", bound="RecipeConfig")


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """What every recipe can be told."""

    epochs: int = 1
    """Passes over the training data."""
    max_steps: int | None = None
    """Optimizer steps after which to stop, over all attempts together; unset: by epochs."""
    batch_size: int = 64
    """Samples a rank and step; the global batch is this times the number of ranks."""
    lr: float = 0.01
    """Peak learning rate; never scaled by the number of ranks."""
    seed: int = 0
    """Seed of data order, initial weights and all random generators."""
    data_dir: str | None = None
    """Folder of the data, such as a mounted volume."""
    checkpoint_dir: str | None = None
    """Folder of checkpoints; unset: TRAINKIT_CHECKPOINT_DIR, else nothing is saved."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints; unset: every 10 minutes. One is saved at the end."""
    init_from: str | None = None
    """Checkpoints, or safetensors, whose weights a run without a checkpoint of its own begins
    with: a folder or URL."""
    strategy: str = "auto"
    """How ranks train together: auto, single, ddp, or mpi under mpirun."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the model; parameters stay in fp32."""
    compile: bool = False
    """Compile the model with torch.compile: slower to start, faster to run."""
    trace: str | None = None
    """Folder for one JSON line a step and rank: step, epoch, sample ids, loss."""
    output_dir: str | None = None
    """Folder for the final model, as safetensors."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} {getattr(self, name)}: expected 1 or more")
        for name in ("max_steps", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} {value}: expected 1 or more, or leave it out")
        if not self.lr > 0:
            raise UsageError(f"--lr {self.lr}: expected a positive number")


def parse(config: type[ConfigT], argv: Sequence[str] | None, description: str | None) -> ConfigT:
    """Read the flags of ``config`` from ``argv``; ends with code 2 where they are wrong.

    ``python -m torch.distributed.launch`` adds ``--local-rank=N`` to a script's arguments;
    the rank is known from the environment, so that flag is dropped.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    own = [a for a in arguments if a.replace("_", "-").partition("=")[0] != "--local-rank"]
    try:
        return tyro.cli(config, args=own, description=description)
    except UsageError as error:
        print(f"trainkit: {error}", file=sys.stderr)
        raise SystemExit(int(error.exit_code)) from None


def run_recipe(
    train: Callable[[trainkit.Context, Any], Any],
    config: type[RecipeConfig],
    description: str | None,
    argv: Sequence[str] | None = None,
) -> Any:
    """Parse the flags and run ``train(ctx, config)`` on every rank of the job."""
    chosen = parse(config, argv, description)
    return trainkit.run(
        partial(_call, train, chosen),
        strategy=chosen.strategy,
        checkpoint_dir=chosen.checkpoint_dir,
        precision=chosen.precision,
        seed=chosen.seed,
    )


def _call(
    train: Callable[[trainkit.Context, Any], Any], config: RecipeConfig, ctx: trainkit.Context
) -> Any:
    return train(ctx, config)
