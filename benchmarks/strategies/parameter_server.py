"""Local SGD on a parameter server against data parallel training, and what a killed worker costs.

    python -m benchmarks.strategies.parameter_server    # about two minutes; --rounds 1 for a look

Two workers train a network of 8.4 million parameters (33.6 MB of gradients) on the CPU, one thread
each: with DDP over gloo, and with one server and a round every 1, 8 and 64 steps. All is on one
host, so the network is a copy through the kernel, and the server and both workers share its cores:
what counts are the bytes, and how much of the step is left of DDP's wait. Bytes of DDP are those of
a ring (2 (W-1)/W of the gradients, sent and received); those of the servers are counted.

Then one of two workers is killed in the middle of a round, once a round of the benchmark: the
longest pause between two steps of the other, and the longest one before.
"""

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

import trainkit
from benchmarks.rounds import Spread, machine, print_table, shuffled_rounds, warn_if_busy
from trainkit.testing import free_port, start_ranks

LAYERS, WIDTH, BATCH = 8, 1024, 8
PRELOAD = ("torch", "torch._dynamo", "trainkit.strategies.torch.local_sgd.strategy")
CONTENDERS = {"DDP, gloo": None, "H = 1": 1, "H = 8": 8, "H = 64": 64, "H = 1, bf16": 1}


def train(every: int | None, wire: str, steps: int, warm: int) -> Any:
    """Run one process of a job; a worker returns its moments and bytes."""
    if every is None:
        return trainkit.run(lambda ctx: _loop(ctx, steps, warm), strategy="ddp")
    from trainkit.strategies.torch.local_sgd.strategy import ParameterServer

    strategy = ParameterServer(sync_every=every, outer_lr=1.0, outer_momentum=0.0, wire=wire)
    return trainkit.run(lambda ctx: _loop(ctx, steps, warm), strategy=strategy)


def _loop(ctx: trainkit.Context, steps: int, warm: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    net = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    model = ctx.setup(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    x = torch.randn(BATCH, WIDTH)
    moments, moved = [], (0, 0)
    for step in range(warm + steps + 1):
        if step == warm:
            moved = _bytes(ctx)
        moments.append(time.monotonic())
        if step == warm + steps:
            break
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}", flush=True)
    sent, received = (now - before for now, before in zip(_bytes(ctx), moved, strict=True))
    return {"moments": moments[warm:], "sent": sent, "received": received}


def _bytes(ctx: trainkit.Context) -> tuple[int, int]:
    links = getattr(ctx.native, "links", None)
    if links is None:
        return 0, 0
    return sum(link.bytes_sent for link in links), sum(link.bytes_received for link in links)


def _environs() -> list[dict[str, str]]:
    """Of a ps, a chief and a worker, as in a TFJob."""
    roles = ("ps", "chief", "worker")
    cluster = {role: [f"127.0.0.1:{free_port()}"] for role in roles}
    return [
        {
            "TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": role, "index": 0}}),
            "OMP_NUM_THREADS": "1",
        }
        for role in roles
    ]


def measure(name: str) -> tuple[float, float]:
    """Steps a second, and megabytes sent and received a step by one worker."""
    every = CONTENDERS[name]
    wire = "bf16" if "bf16" in name else "fp32"
    steps = max(16, every or 0)
    arguments = (every, wire, steps, max(4, every or 0))
    count, environs = (2, None) if every is None else (3, _environs())
    with start_ranks(train, count, *arguments, env=environs, timeout=120, preload=PRELOAD) as ranks:
        values = [result.value for result in ranks.wait()]
    chief = values[0] if every is None else values[1]
    seconds = chief["moments"][-1] - chief["moments"][0]
    moved = (chief["sent"] + chief["received"]) / steps
    if every is None:
        size = sum(p.numel() * 4 for p in torch.nn.Linear(WIDTH, WIDTH).parameters()) * LAYERS
        moved = 2 * size  # (W - 1) / W twice, there and back, at W = 2
    return steps / seconds, moved / 1e6


def killed() -> tuple[float, float, float]:
    """Kill a worker; the chief's longest pause before and from then on, and its median step."""
    arguments = (8, "fp32", 80, 8)
    with start_ranks(train, 3, *arguments, env=_environs(), timeout=120, preload=PRELOAD) as ranks:
        ranks[2].wait_for("step 44\n", 60)
        ranks[2].kill()
        moment = time.monotonic()
        moments = ranks.wait(check=False)[1].value["moments"]
    pauses = [(end, end - begin) for begin, end in itertools.pairwise(moments)]
    before = max(pause for end, pause in pauses if end < moment)
    after = max(pause for end, pause in pauses if end >= moment)
    return before, after, statistics.median(pause for _, pause in pauses)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all contenders in turns and print tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    args = parser.parse_args(argv)
    warn_if_busy()
    found = list(shuffled_rounds(list(CONTENDERS), args.rounds, measure))
    print(f"{machine()}; {args.rounds} rounds; {os.cpu_count()} cores for three processes\n")
    peer = "DDP, gloo"
    rows = []
    for name in CONTENDERS:
        speed = Spread.of([round_[name][0] for round_ in found])
        times = Spread.of([round_[name][0] / round_[peer][0] for round_ in found])
        megabytes = statistics.median(round_[name][1] for round_ in found)
        less = found[0][peer][1] / megabytes
        rows.append([name, speed.show(".1f"), times.show(".2f"), f"{megabytes:.2f}", f"{less:.1f}"])
    print_table(["", "steps/s", "× DDP", "MB a step and worker", "times less than DDP"], rows)
    stalls = [killed() for _ in range(args.rounds)]
    print(
        f"\nA worker killed in a round of 8 steps, {args.rounds} times: longest pause of the other "
        f"before {max(s[0] for s in stalls) * 1e3:.0f} ms, from the kill on "
        f"{max(s[1] for s in stalls) * 1e3:.0f} ms; median step "
        f"{statistics.median(s[2] for s in stalls) * 1e3:.1f} ms."
    )


if __name__ == "__main__":
    main()
