"""The first save of a process: how long it keeps the training loop, in a process of its own.

    python -m benchmarks.checkpoint.first trainkit "64 × 4 MiB" FOLDER

Its last line on stdout is a JSON object: seconds of the first asynchronous save, and of a memcpy of
as many bytes into memory that is there already. Off the clock are the construction of a manager and
a second of training steps, after each of which trainkit's loop calls ``step``: no run saves before
its first step.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.checkpoint.contenders import TrainkitSaves, dcp_async_stall, memcpy_seconds
from benchmarks.checkpoint.states import STATES, make_model, num_bytes

WAYS = ("trainkit", "DCP async_save")

_TRAINING = 1.0
"""Seconds of training before the first save."""


def main() -> None:
    """Save once."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("state", choices=STATES)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    model = make_model(args.state)
    source = torch.ones(num_bytes(args.state), dtype=torch.uint8)
    target = torch.zeros_like(source)
    copied = min(memcpy_seconds(source, target) for _ in range(3))
    if args.way == "trainkit":
        ours = TrainkitSaves(model, args.folder)
        _train(ours.manager.step)
        seconds = ours.timed(blocking=False)
        ours.manager.close()
    else:
        _train(lambda step: None)
        seconds = dcp_async_stall(model, args.folder)
    sys.stdout.write(json.dumps({"seconds": seconds, "memcpy": copied}) + "\n")


def _train(after: Callable[[int], object]) -> None:
    """Steps of a small network; ``after`` is called with the number of each."""
    net, inputs = torch.nn.Linear(64, 64), torch.ones(64, 64)
    end, step = time.perf_counter() + _TRAINING, 0
    while time.perf_counter() < end:
        net(inputs).sum().backward()
        step += 1
        after(step)


if __name__ == "__main__":
    main()
