"""A job that is told to stop in one of its phases, and says what it does; for `test_notices`."""

import contextlib
import json
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import trainkit
from tests.faults.broken import oldest_restored, replaced
from trainkit.checkpoint import CheckpointManager
from trainkit.lifecycle import RankMonitor

__all__ = ["BROKEN", "train"]

_ENDLESS = 10**6
_EVALUATE = 0.02
"""Seconds of one batch of an evaluation."""


class Diary:
    """What a rank did and when, a line each, in one write; its workers may write, too."""

    def __init__(self, folder, rank):
        self._path = str(Path(folder) / f"rank-{rank}.jsonl")

    def note(self, what, value=None):
        """Write a line; the time is the host's monotonic clock."""
        line = json.dumps({"what": what, "value": value, "at": time.monotonic()}) + "\n"
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(file, line.encode())
        os.close(file)


class Samples(Dataset):
    """Numbers, of which one takes long to come."""

    def __init__(self, diary, slow, seconds):
        self._diary, self._slow, self._seconds = diary, slow, seconds

    def __len__(self):
        return _ENDLESS

    def __getitem__(self, index):
        if index == self._slow:
            self._diary.note("phase")
            time.sleep(self._seconds)
        return float(index)


def train(url, folder, phase, *, at=0, seconds=0.0, size=1000, steps=_ENDLESS, broken=None):
    """The whole life of a rank.

    Args:
        url: of the checkpoints.
        folder: of the diaries.
        phase: which one it notes that it has come to; None to come to none.
        at: the step at which that is.
        seconds: for which the phase lasts, where it is one that waits.
        size: numbers of 8 bytes in the state.
        steps: after which it ends by itself.
        broken: which of `BROKEN` it is.
    """
    diary = Diary(folder, os.environ["RANK"])
    with BROKEN[broken]():
        if phase == "imports":
            diary.note("phase")
            import torch._inductor.compile_fx  # noqa: F401 - a second of imports
        body = partial(_main, diary, phase, at, seconds, size, steps)
        trainkit.run(body, checkpoint_dir=url, strategy="torch:auto")


def _main(diary, phase, at, seconds, size, steps, ctx):
    torch.set_num_threads(1)
    if phase == "restore":
        diary.note("phase")
    net = torch.nn.Linear(1, 4)
    if phase == "compile":
        net.compile()
    model = ctx.setup(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    slow = ctx.world_size * at + ctx.rank if phase == "data" else None
    workers = 1 if phase == "data" and at % 2 else 0
    samples = Samples(diary, slow, seconds)
    loader = ctx.setup_dataloader(DataLoader(samples, 1, num_workers=workers), train=True)
    progress, numbers = trainkit.Progress(), np.zeros(size)
    every = 5 if phase == "save" else 30
    checkpoints = ctx.checkpoints(
        save=every, numbers=numbers, model=model, optimizer=optimizer, progress=progress
    )
    restored = checkpoints.restore_latest() or 0
    diary.note("restored", [restored, progress.step, float(numbers.min()), float(numbers.max())])
    if phase == "compile":
        diary.note("phase")
    for x in loader:
        if progress.step >= steps:
            break
        loss = model(x.float().reshape(1, 1)).pow(2).mean() * 1e-6
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress.step += 1
        numbers.fill(progress.step)
        diary.note("step", progress.step)
        if phase == "step" and progress.step == at:
            diary.note("phase")
        if phase == "first step" and progress.step == restored + 1:
            diary.note("phase")
            time.sleep(seconds)
        if checkpoints.step(progress.step) and phase == "save" and progress.step >= at:
            diary.note("phase")
        diary.note("saved", checkpoints.last_saved_step or 0)
        if phase in ("evaluation", "deaf evaluation") and progress.step == at:
            diary.note("phase")
            _evaluate(ctx, seconds, asks=phase == "evaluation")
        time.sleep(0.002)


def _evaluate(ctx, seconds, *, asks):
    for _ in range(round(seconds / _EVALUATE)):
        if asks and ctx.preempted:
            return
        time.sleep(_EVALUATE)


def _unsaved(self, step, metrics=None):
    return "it is saved"


BROKEN = {
    None: contextlib.nullcontext,
    "stops and does not save": lambda: replaced(CheckpointManager, "save_for_stop", _unsaved),
    "ends as if all were done": lambda: replaced(RankMonitor, "exit_code", 0),
    "restores an older checkpoint": oldest_restored,
}
"""Jobs that are broken on purpose; None is as it should be."""
