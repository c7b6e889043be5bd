"""Memory a rank and time a step of fsdp against ddp and against torch's fully_shard by hand.

    python -m benchmarks.strategies.fsdp           # about two minutes; --rounds 1 for a look

Two ranks on this host's CPU, gloo, a transformer of 25 million parameters in fp32 under AdamW.
"Held" counts the bytes of parameters, gradients and moments of rank 0; "process" is how much
memory of its own rank 0 has at most (RssAnon), less what it had before the model.
"""

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.rounds import Spread, machine, print_table, shuffled_rounds, warn_if_busy
from trainkit.testing import run_ranks

DDP, FSDP = "ddp", "fsdp"
KEPT = "fsdp, weights kept to backward"
AGAIN = "fsdp, activations computed again"
BY_HAND = "fully_shard by hand"
NAMES = [DDP, FSDP, KEPT, AGAIN, BY_HAND]
PRELOAD = ("torch", "torch._dynamo", "torch.distributed.fsdp", "trainkit.recipes.lm")
MOST_HELD, MOST_OF_BY_HAND = 0.51, 1.02
WARM, STEPS, ROWS, LENGTH = 3, 9, 2, 64


def main(argv: Sequence[str] | None = None) -> None:
    """Run all contenders in turns and print how they compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    warn_if_busy()
    memory: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}

    def measure(name: str) -> float:
        found = run_ranks(ranks, 2, name, timeout=280, preload=PRELOAD)[0].value
        memory[name].append((found["held"], found["process"]))
        return float(found["step"])

    rounds = list(shuffled_rounds(NAMES, args.rounds, measure))
    rows = []
    for name in NAMES:
        held, process = (Spread.of(values) for values in zip(*memory[name], strict=True))
        rows.append([name, held.show(".0f", 1e-6), process.show(".0f", 1e-6)])
        rows[-1].append(Spread.of([found[name] for found in rounds]).show(".0f", 1e3))
        for other in (DDP, BY_HAND):
            ratio = Spread.of([found[name] / found[other] for found in rounds])
            rows[-1].append("" if name == other else ratio.show(".2f"))
    print(f"{machine()}; {len(rounds)} round(s)\n")
    header = ["strategy", "held, MB", "process, MB", "ms a step", "× ddp", "× by hand"]
    print_table(header, rows)
    held = memory[FSDP][0][0] / memory[DDP][0][0]
    print(f"\nheld by fsdp: {held:.3f} × ddp; target ≤ {MOST_HELD}: {_verdict(held, MOST_HELD)}")
    ratio = Spread.of([found[FSDP] / found[BY_HAND] for found in rounds]).median
    verdict = _verdict(ratio, MOST_OF_BY_HAND)
    print(f"fsdp: {ratio:.3f} × {BY_HAND}; target ≤ {MOST_OF_BY_HAND}: {verdict}")


def _verdict(found: float, target: float) -> str:
    return "met" if found <= target else "missed"


def ranks(name: str) -> dict[str, float]:
    """What one rank runs."""
    import torch

    torch.set_num_threads(1)
    if name == BY_HAND:
        return _by_hand()
    import trainkit
    from trainkit.strategies.torch.ddp import DDP as Ddp
    from trainkit.strategies.torch.fsdp import FSDP as Fsdp

    strategy = Ddp() if name == DDP else Fsdp(reshard_after_forward=name != KEPT)

    def train(ctx: Any) -> dict[str, float]:
        before, net = _own_memory(), _net()
        model = ctx.setup(net, activation_checkpointing=name == AGAIN)
        return _measure(model, net, before)

    found: dict[str, float] = trainkit.run(train, strategy=strategy, seed=0)
    return found


def _by_hand() -> dict[str, float]:
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    before, net = _own_memory(), _net()
    for module in (*net.blocks, net):
        fully_shard(module)
    found = _measure(net, net, before)
    dist.barrier()
    dist.destroy_process_group()
    return found


def _net() -> Any:
    from trainkit.recipes.lm import Transformer

    return Transformer(layers=8, width=512, heads=8, context=LENGTH)


def _measure(model: Any, net: Any, before: float) -> dict[str, float]:
    import torch

    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    text = torch.randint(256, (ROWS, LENGTH))
    times, most = [], 0.0
    for _ in range(WARM + STEPS):
        began = time.perf_counter()
        scores = model(text)
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), text.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - began)
        most = max(most, _own_memory())
    held = sum(_bytes_held(net, optimizer))
    step = statistics.median(times[WARM:])
    return {"step": step, "held": held, "process": most - before}


def _bytes_held(net: Any, optimizer: Any) -> Iterator[int]:
    """Bytes of this rank's part of each parameter, gradient and moment."""
    for parameter in net.parameters():
        moments = [t for t in optimizer.state[parameter].values() if t.ndim]
        for tensor in (parameter, parameter.grad, *moments):
            local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            yield local.numel() * local.element_size()


def _own_memory() -> float:
    """Bytes that are this process's alone, and were written."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("RssAnon"))
    return float(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
