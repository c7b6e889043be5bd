"""A small language model of bytes: a decoder-only transformer, sharded if you like.

    python -m trainkit.recipes.lm                                        # one rank
    torchrun --nproc-per-node=2 -m trainkit.recipes.lm --strategy fsdp   # each rank holds a half
    mpirun -n 2 python -m trainkit.recipes.lm --strategy fsdp            # the same under MPI
    kubectl apply -f recipes/lm/pytorchjob.yaml                          # pods of an operator

Without --data-dir it trains on the sources of Python's own library, one file in ten held out,
with no network. It ends with the bits that it needs for a byte of held-out text, beside those of
counting pairs and triples of bytes.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

import trainkit
from trainkit.errors import UsageError
from trainkit.recipes._config import RecipeConfig, run_recipe
from trainkit.recipes._lines import finish, say
from trainkit.recipes._text import Text, Windows, load_text, ngram_bits
from trainkit.recipes._torch import export, total_steps
from trainkit.recipes._trace import StepTrace

__all__ = ["Block", "Config", "Transformer", "main"]


@dataclass(frozen=True, kw_only=True)
class Config(RecipeConfig):
    """Flags of the language model recipe."""

    max_steps: int | None = 1000
    """Optimizer steps after which to stop, over all attempts together."""
    batch_size: int = 16
    """Windows a rank and step; the global batch is this times the number of ranks."""
    lr: float = 2e-3
    """Peak learning rate of AdamW, reached after a tenth of the steps; never scaled by the number
    of ranks."""
    weight_decay: float = 0.1
    """Decay of all matrices, a step, times the learning rate."""
    clip: float = 1.0
    """Largest L2 norm of a step's gradients, over all ranks."""
    data_dir: str | None = None
    """Folder with text files (.txt, .md, .rst, .py); unset: Python's own library."""
    layers: int = 4
    """Blocks of the transformer."""
    width: int = 128
    """Numbers that stand for a byte between blocks."""
    heads: int = 4
    """Heads of attention; they divide the width."""
    context: int = 128
    """Bytes of a window, which is as far as the model looks back."""
    activation_checkpointing: bool = False
    """Compute each block's activations again in the backward pass: less memory, more time."""
    test_windows: int = 1000
    """Windows of held-out text to test on at most, spread evenly over it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("layers", "width", "heads", "context", "test_windows"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} {getattr(self, name)}: expected 1 or more")
        if self.width % self.heads:
            raise UsageError(f"--width {self.width} does not divide by --heads {self.heads}")
        if not self.clip > 0:
            raise UsageError(f"--clip {self.clip}: expected a number above 0; inf does not clip")
        if self.weight_decay < 0:
            raise UsageError(f"--weight-decay {self.weight_decay}: expected 0 or more")


class Block(nn.Module):
    """Attention to earlier bytes, then two linear layers; both add to what came in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, L, width] → the same shape."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, L, width / heads]
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).reshape(batch, length, width))
        added: torch.Tensor = self.down(functional.gelu(self.up(self.norm2(x))))
        return x + added


class Transformer(nn.Module):
    """Bytes and places, blocks, and a score for each byte that may be next.

    In the form of GPT-2 (Radford et al., 2019), norms before and not after.
    """

    def __init__(self, *, layers: int, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, width)
        self.places = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.scores = nn.Linear(width, 256, bias=False)
        std = 0.8 / math.sqrt(width)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                # Last in a block: smaller, so that the sum over all blocks begins as large as one.
                last = name.endswith(("mix.weight", "down.weight"))
                nn.init.normal_(parameter, std=std / math.sqrt(2 * layers) if last else std)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Bytes [B, L] of int64 → scores [B, L, 256] of the byte after each."""
        x = self.bytes(text) + self.places.weight[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        scores: torch.Tensor = self.scores(self.norm(x))
        return scores


def main(ctx: trainkit.Context, config: Config) -> float:
    """Train and test; returns bits a byte on held-out text, the same on all ranks."""
    text = load_text(config.data_dir)
    train_set = Windows(text.train, config.context)
    test_set = Windows(text.held_out, config.context, at_most=config.test_windows)
    net = Transformer(
        layers=config.layers, width=config.width, heads=config.heads, context=config.context
    )
    num_parameters = sum(parameter.numel() for parameter in net.parameters())
    if config.compile:
        net.compile()
    model = ctx.setup(net, activation_checkpointing=config.activation_checkpointing)
    optimizer = torch.optim.AdamW(_groups(net, config), lr=config.lr, betas=(0.9, 0.95), fused=True)
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
    _introduce(ctx, config, text, num_parameters, first, steps)
    with StepTrace(config.trace, ctx.rank) as trace:
        for progress.epoch in range(progress.epoch, config.epochs):  # noqa: B020
            if progress.step >= steps:
                break
            for inputs, targets, ids in loader:
                _set_lr(optimizer, config.lr, progress.step / steps)
                loss = functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
                optimizer.zero_grad()
                loss.backward()
                norm = ctx.clip_grad_norm(model, config.clip)
                optimizer.step()
                progress.step += 1
                if trace.enabled:
                    trace.step(progress.step, progress.epoch, ids.tolist(), loss.item())
                ctx.log(
                    progress.step, steps=steps, epoch=progress.epoch, loss=loss.detach(), norm=norm
                )
                checkpoints.step(progress.step)
                if progress.step >= steps:
                    break
    checkpoints.save_unsaved()  # a kill during the test then repeats the test alone
    bits, accuracy = _test(ctx, model, DataLoader(test_set, 64))
    by_counting = [ngram_bits(text.train, test_set, order) for order in (2, 3) if ctx.rank == 0]
    pairs, triples = ctx.broadcast_object(by_counting)
    export(ctx, net, config.output_dir)
    say(
        ctx,
        f"{bits:.3f} bits a byte of held-out text; counting pairs needs {pairs:.3f}, triples "
        f"{triples:.3f}",
    )
    finish(
        ctx,
        step=progress.step,
        steps_run=progress.step - first,
        test_accuracy=accuracy,
        bits_per_byte=bits,
        bigram_bits_per_byte=pairs,
        trigram_bits_per_byte=triples,
    )
    return bits


def _groups(net: nn.Module, config: Config) -> list[dict[str, Any]]:
    """Matrices decay; biases and gains of norms do not."""
    matrices = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


@torch.no_grad()
def _test(ctx: trainkit.Context, model: nn.Module, loader: DataLoader[Any]) -> tuple[float, float]:
    """Bits a byte, and the share of bytes told right; each window counts once."""
    model.eval()
    sums = torch.zeros(3, device=ctx.device, dtype=torch.float64)  # bits, right, bytes
    shard = ctx.setup_dataloader(loader, train=False)
    for inputs, targets, _ in shard:
        scores = model(inputs)
        nats = functional.cross_entropy(scores.transpose(1, 2), targets, reduction="none")
        right = scores.argmax(-1) == targets
        counting = shard.mask[:, None].expand_as(targets)
        sums[0] += (nats * counting).sum() / math.log(2)
        sums[1] += (right & counting).sum()
        sums[2] += counting.sum()
    model.train()
    bits, right, count = ctx.all_reduce(sums, "sum").tolist()
    return bits / count, right / count


def _introduce(
    ctx: trainkit.Context, config: Config, text: Text, num_parameters: int, first: int, steps: int
) -> None:
    if first >= steps:
        say(ctx, f"nothing left: step {first} of {steps}")
        return
    say(
        ctx,
        f"{len(text.train):,} bytes of {text.num_files:,} files ({text.source}), "
        f"{len(text.held_out):,} held out; {num_parameters:,} parameters: {steps - first} steps of "
        f"{config.batch_size} x {ctx.world_size} windows of {config.context} bytes, "
        f"{config.precision} on {ctx.device}",
    )


def _set_lr(optimizer: torch.optim.Optimizer, peak: float, done: float) -> None:
    """Up over a tenth of the run, then down along a cosine to a tenth.

    Args:
        optimizer: whose learning rate to set.
        peak: the highest learning rate.
        done: share of the run, 0 … 1. A pure function of the step has no state to restore.
    """
    rise = min(1.0, 0.02 + done / 0.1)
    fall = 0.1 + 0.45 * (1 + math.cos(math.pi * max(0.0, done - 0.1) / 0.9))
    for group in optimizer.param_groups:
        group["lr"] = peak * rise * fall


if __name__ == "__main__":
    run_recipe(main, Config, __doc__)
