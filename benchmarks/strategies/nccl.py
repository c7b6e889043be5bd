"""DDP and FSDP2 on NCCL at world size 1: what each costs over a plain loop on one GPU.

    python -m benchmarks.strategies.nccl           # needs a GPU; says so and ends with 0 without

What ranks send each other cannot be shown on one GPU. This shows that both train there, in fp32
and bf16, and how much host and device time their wrappers take.
"""

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.rounds import Spread, machine, print_table, shuffled_rounds, warn_if_busy
from trainkit.testing import run_ranks

PRELOAD = ("torch", "torch._dynamo", "torch.distributed.fsdp", "trainkit.recipes.lm")
PLAIN = "single"
WARM, STEPS, ROWS, LENGTH = 10, 50, 16, 512


def main(argv: Sequence[str] | None = None) -> None:
    """Run all contenders in turns and print how they compare; skip without a GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    from trainkit.resources.gpus import visible_gpu_count

    if visible_gpu_count() == 0:
        print("skipped: this benchmark needs a CUDA device, and none is visible here")
        return
    warn_if_busy()
    names = [f"{s}, {p}" for s in (PLAIN, "ddp", "fsdp") for p in ("fp32", "bf16")]
    memory: dict[str, float] = {}

    def measure(name: str) -> float:
        strategy, precision = name.split(", ")
        found = run_ranks(ranks, 1, strategy, precision, timeout=280, preload=PRELOAD)[0].value
        if not found["last"] < found["first"]:
            raise SystemExit(f"{name} does not learn: {found}")
        memory[name] = found["peak"]
        return float(found["step"])

    rounds = list(shuffled_rounds(names, args.rounds, measure))
    rows = []
    for name in names:
        plain = f"{PLAIN}, {name.split(', ')[1]}"
        ratio = Spread.of([found[name] / found[plain] for found in rounds])
        step = Spread.of([found[name] for found in rounds]).show(".2f", 1e3)
        peak = f"{memory[name] / 1e6:.0f}"
        rows.append([name, step, "" if name == plain else ratio.show(".2f"), peak])
    print(f"{machine()}; {len(rounds)} round(s)\n")
    print_table(["strategy", "ms a step", "× single", "peak on the device, MB"], rows)


def ranks(strategy: str, precision: str) -> dict[str, float]:
    """What the one rank runs."""
    import torch

    import trainkit
    from trainkit.recipes.lm import Transformer

    def train(ctx: Any) -> dict[str, float]:
        net = Transformer(layers=12, width=768, heads=12, context=LENGTH)
        model = ctx.setup(net)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        text = torch.randint(256, (ROWS, LENGTH), device=ctx.device)
        times, losses = [], []
        for _ in range(WARM + STEPS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            scores = model(text)
            loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), text.flatten())
            optimizer.zero_grad()
            loss.backward()
            ctx.clip_grad_norm(model, 1.0)
            optimizer.step()
            end.record()
            losses.append(loss.detach())
            times.append((start, end))
        torch.cuda.synchronize()
        took = [start.elapsed_time(end) / 1e3 for start, end in times[WARM:]]
        return {
            "step": statistics.median(took),
            "first": float(losses[0]),
            "last": float(losses[-1]),
            "peak": float(torch.cuda.max_memory_allocated()),
        }

    found: dict[str, float] = trainkit.run(
        train, strategy=f"torch:{strategy}", precision=precision, seed=0
    )
    return found


if __name__ == "__main__":
    main()
