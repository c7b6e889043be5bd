"""The first save of a process: how long it keeps the training loop, in a process of its own.

    python -m benchmarks.checkpoint.first trainkit "64 × 4 MiB" FOLDER

Its last line on stdout is a JSON object: seconds of the first asynchronous save, and of a memcpy of
as many bytes into memory that is there already. What comes before the first save, such as the
construction of a manager, is not on the clock: it is paid once, before training.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

import torch

from benchmarks.checkpoint.contenders import TrainkitSaves, dcp_async_stall, memcpy_seconds
from benchmarks.checkpoint.states import STATES, make_model, num_bytes

WAYS = ("trainkit", "DCP async_save")


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
        seconds = ours.timed(blocking=False)
        ours.manager.close()
    else:
        seconds = dcp_async_stall(model, args.folder)
    sys.stdout.write(json.dumps({"seconds": seconds, "memcpy": copied}) + "\n")


if __name__ == "__main__":
    main()
