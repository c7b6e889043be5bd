"""Flags that all recipes share, made from a dataclass by tyro."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import tyro

import trainkit
from trainkit.errors import UsageError

__all__ = ["JobConfig", "RecipeConfig", "parse", "run_recipe"]

ConfigT = TypeVar("ConfigT", bound="JobConfig")


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What a recipe of any framework can be told."""

    seed: int = 0
    """Seed of all random generators."""
    data_dir: str | None = None
    """Folder of the data, such as a mounted volume."""
    checkpoint_dir: str | None = None
    """Folder of checkpoints; unset: TRAINKIT_CHECKPOINT_DIR, else nothing is saved."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints; unset: every 10 minutes. One is saved at the end."""
    strategy: str = "auto"
    """How ranks train together: auto, or the name of a strategy."""
    output_dir: str | None = None
    """Folder for the final model."""

    def __post_init__(self) -> None:
        self.require_positive("checkpoint_every")

    def require_positive(self, *names: str) -> None:
        """Refuse numbers below 1.

        Args:
            names: fields with whole numbers; None passes.

        Raises:
            UsageError: names the first flag, and its value.
        """
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                flag = name.replace("_", "-")
                optional = type(self).__dataclass_fields__[name].default is None
                hint = ", or leave it out" if optional else ""
                raise UsageError(f"--{flag} {value}: expected 1 or more{hint}")


@dataclass(frozen=True, kw_only=True)
class RecipeConfig(JobConfig):
    """What every recipe of torch can be told."""

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
    init_from: str | None = None
    """Checkpoints, or safetensors, whose weights a run without a checkpoint of its own begins
    with: a folder or URL."""
    strategy: str = "auto"
    """How ranks train together: auto, single, ddp, fsdp, parameter_server, or mpi under mpirun."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the model; parameters stay in fp32."""
    compile: bool = False
    """Compile the model with torch.compile: slower to start, faster to run."""
    trace: str | None = None
    """Folder for one JSON line a step and rank: step, epoch, sample ids, loss."""
    output_dir: str | None = None
    """Folder for the final model, as safetensors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_positive("epochs", "batch_size", "max_steps")
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
    config: type[JobConfig],
    description: str | None,
    argv: Sequence[str] | None = None,
    *,
    evaluate: Callable[[trainkit.Context, Any], Any] | None = None,
) -> Any:
    """Parse the flags and run ``train(ctx, config)`` on every rank of the job.

    Args:
        train: the training.
        config: whose fields are the flags.
        description: shown by ``--help``.
        argv: the command line; this process's by default.
        evaluate: ``evaluate(ctx, config)``, in an evaluator pod.
    """
    chosen = parse(config, argv, description)
    precision = getattr(chosen, "precision", None)
    return trainkit.run(
        partial(_call, train, chosen),
        evaluate=None if evaluate is None else partial(_call, evaluate, chosen),
        strategy=chosen.strategy,
        checkpoint_dir=chosen.checkpoint_dir,
        # The default of all frameworks, of which only torch knows others.
        precision=None if precision == "fp32" else precision,
        seed=chosen.seed,
    )


def _call(
    train: Callable[[trainkit.Context, Any], Any], config: JobConfig, ctx: trainkit.Context
) -> Any:
    return train(ctx, config)
