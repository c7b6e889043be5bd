"""A training program to be put on MPI ranks: ``python training.py MODE FOLDER OF-A-RANK``."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import trainkit
from trainkit import detect

SECRET = "open" + "sesame"


def main(mode: str, folder: str) -> int:
    topology = detect()
    (Path(folder) / f"rank-{topology.rank}").write_text(json.dumps(_seen(topology)))
    if mode == "report":
        return 0
    if mode in ("ddp", "saves"):
        trainkit.run({"ddp": ddp, "saves": saves}[mode], strategy="ddp")
    if mode in ("raise", "lost", "killed") and topology.rank == 1:
        if mode == "raise":
            return 70
        if mode == "lost":
            return 138
        os.kill(os.getpid(), signal.SIGKILL)
    heard = []
    if mode == "stop":
        signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not heard:
        time.sleep(0.02)  # a collective that never ends
    return 143 if heard else 99


def saves(ctx) -> None:
    """Train until told to stop; another pod's file says so to the test."""
    import torch

    model, progress = ctx.setup(torch.nn.Linear(4, 1)), trainkit.Progress()
    checkpoints = ctx.checkpoints(model=model, progress=progress)
    began = checkpoints.restore_latest()
    while progress.step < 100_000:
        model(torch.randn(2, 4)).sum().backward()
        progress.step += 1
        if progress.step == (began or 0) + 3:
            Path(os.environ["STARTED"], f"{ctx.rank}").touch()
        time.sleep(0.01)
        checkpoints.step(progress.step)


def ddp(ctx) -> None:
    """Rank 1 fails while the others wait for it in a collective."""
    import torch

    model = ctx.setup(torch.nn.Linear(4, 1))
    for step in range(3):
        if ctx.rank == 1 and step == 1:
            raise ValueError("rank 1 has had enough")
        model(torch.randn(2, 4)).sum().backward()
    ctx.barrier()


def _seen(topology) -> dict:
    lines = [_line(process) for process in Path("/proc").glob("[0-9]*")]
    return {
        "hostname": os.uname().nodename,
        "rank": topology.rank,
        "world_size": topology.world_size,
        "local_rank": topology.local_rank,
        "cwd": str(Path.cwd()),
        "cpus": len(os.sched_getaffinity(0)),
        "environ": {name: value for name, value in os.environ.items() if "MCA" not in name},
        "shown": [line for line in lines if SECRET in line],
    }


def _line(process: Path) -> str:
    try:
        return (process / "cmdline").read_text(errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
