"""Who takes part: trainkit, torch's own ways, and the limits. Each method times one turn.

Every save begins at the module, so it includes ``state_dict()``, and goes to a new file or folder
that is removed off the clock. What is in the page cache is flushed off the clock too, so that
nobody pays for what another left behind.
"""

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from benchmarks.checkpoint.states import num_bytes
from trainkit.checkpoint import CheckpointManager

__all__ = [
    "LOAD",
    "OPERATIONS",
    "OURS",
    "SAVE",
    "STALL",
    "TrainkitSaves",
    "dcp_async_stall",
    "memcpy_seconds",
]

OURS = "trainkit"
_KEEP = 1_000_000
"""Old checkpoints go off the clock for everybody; peers remove none at all."""

Turn = Callable[[], float]


class _Clock:
    """Seconds between ``with`` and its end."""

    def __enter__(self) -> "_Clock":
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._began


def _cleared(folder: Path) -> Path:
    """An empty folder, with nothing left in the page cache that still has to be written."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.sync()
    return folder


class TrainkitSaves:
    """A manager, and turns that save one step more and remove the one before."""

    def __init__(self, model: torch.nn.Module, folder: Path) -> None:
        self.manager = CheckpointManager(_cleared(folder), {"model": model}, keep=_KEEP)
        self._folder = folder
        self._step = 0

    def timed(self, *, blocking: bool) -> float:
        """How long ``save`` keeps the training loop; it is committed in any case."""
        for old in self._folder.glob("step-*"):
            (old / "MANIFEST.json").unlink(missing_ok=True)
            shutil.rmtree(old)
        os.sync()
        self._step += 1
        with _Clock() as clock:
            self.manager.save(self._step, blocking=blocking)
        self.manager.wait()
        return clock.seconds


def _trainkit(stack: contextlib.ExitStack, model: torch.nn.Module, folder: Path) -> TrainkitSaves:
    ours = TrainkitSaves(model, folder / "trainkit")
    stack.callback(ours.manager.close)
    return ours


def _saves(
    stack: contextlib.ExitStack, model: torch.nn.Module, state: str, folder: Path
) -> dict[str, Turn]:
    ours = _trainkit(stack, model, folder)

    def with_torch() -> float:
        path = _cleared(folder / "torch") / "model.pt"
        with _Clock() as clock:
            torch.save(model.state_dict(), path)
        return clock.seconds

    def with_dcp(threads: int) -> float:
        path = _cleared(folder / "dcp")
        with _Clock() as clock:
            writer = dcp.FileSystemWriter(path, thread_count=threads)
            dcp.save({"model": model.state_dict()}, storage_writer=writer, no_dist=True)
        return clock.seconds

    return {
        OURS: lambda: ours.timed(blocking=True),
        "torch.save, not flushed": with_torch,
        "DCP save, 1 thread": lambda: with_dcp(1),
        "DCP save, 2 threads": lambda: with_dcp(2),
        "limit: dd oflag=direct": lambda: _dd(_cleared(folder / "dd") / "file", state),
    }


def _dd(path: Path, state: str) -> float:
    """By dd's own clock, so that its start does not count."""
    command = ["dd", "if=/dev/zero", f"of={path}", "bs=8M", f"count={num_bytes(state)}"]
    command += ["iflag=count_bytes", "oflag=direct"]
    done = subprocess.run(
        command, env={**os.environ, "LC_ALL": "C"}, check=True, capture_output=True, text=True
    )
    found = re.search(r"copied, ([\d.e+-]+) s", done.stderr)
    if found is None:
        raise SystemExit(f"dd says nothing of its time: {done.stderr}")
    return float(found[1])


def dcp_async_stall(model: torch.nn.Module, path: Path, stager: Any = None) -> float:
    """How long ``async_save`` keeps the training loop; it is finished off the clock."""
    _cleared(path)
    with _Clock() as clock:
        future = dcp.async_save(
            {"model": model.state_dict()},
            storage_writer=dcp.FileSystemWriter(path),
            async_stager=stager,
            no_dist=True,
        )
    future.result()  # type: ignore[union-attr]
    return clock.seconds


def memcpy_seconds(source: torch.Tensor, target: torch.Tensor) -> float:
    """One copy of all bytes into memory that is there already."""
    with _Clock() as clock:
        target.copy_(source)
    return clock.seconds


def _stalls(
    stack: contextlib.ExitStack, model: torch.nn.Module, state: str, folder: Path
) -> dict[str, Turn]:
    ours = _trainkit(stack, model, folder)
    stager = DefaultStager(StagingOptions(False, False, False, False))
    stack.callback(stager.close)
    source = torch.ones(num_bytes(state), dtype=torch.uint8)
    target = torch.zeros_like(source)
    return {
        OURS: lambda: ours.timed(blocking=False),
        "DCP async_save": lambda: dcp_async_stall(model, folder / "dcp"),
        "DCP async_save, stager kept": lambda: dcp_async_stall(model, folder / "dcp", stager),
        "limit: memcpy": lambda: memcpy_seconds(source, target),
    }


def _loads(
    stack: contextlib.ExitStack, model: torch.nn.Module, state: str, folder: Path
) -> dict[str, Turn]:
    torch_file, dcp_folder = _cleared(folder / "torch") / "model.pt", _cleared(folder / "dcp")
    torch.save(model.state_dict(), torch_file)
    writer = dcp.FileSystemWriter(dcp_folder)
    dcp.save({"model": model.state_dict()}, storage_writer=writer, no_dist=True)
    target = torch.zeros(num_bytes(state), dtype=torch.uint8)

    def with_torch() -> float:
        with _Clock() as clock:
            model.load_state_dict(torch.load(torch_file, weights_only=True))
        return clock.seconds

    def with_dcp() -> float:
        with _Clock() as clock:
            reader = dcp.FileSystemReader(dcp_folder)
            dcp.load({"model": model.state_dict()}, storage_reader=reader, no_dist=True)
        return clock.seconds

    def plain_read() -> float:
        with _Clock() as clock, torch_file.open("rb", buffering=0) as file:
            file.readinto(memoryview(target.numpy()))
        return clock.seconds

    ours = _trainkit(stack, model, folder)
    ours.timed(blocking=True)

    def with_trainkit() -> float:
        with _Clock() as clock:
            ours.manager.restore_latest()
        return clock.seconds

    ways = {
        OURS: with_trainkit,
        "torch.load and load_state_dict": with_torch,
        "DCP load": with_dcp,
    }
    _check_loads(model, ways)
    return {**ways, "limit: one read, unverified": plain_read}


def _check_loads(model: torch.nn.Module, ways: dict[str, Turn]) -> None:
    """Refuse to time what does not load the model; this also is everybody's first time."""
    saved = [parameter.detach().clone() for parameter in model.parameters()]
    for name, way in ways.items():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        way()
        if not all(map(torch.equal, model.parameters(), saved)):
            raise SystemExit(f"{name}: what was loaded is not what was saved")


Makes = Callable[[contextlib.ExitStack, torch.nn.Module, str, Path], dict[str, Turn]]

SAVE, STALL, LOAD = "save, until committed", "stall of a warm save", "load, from the page cache"

OPERATIONS: dict[str, Makes] = {
    SAVE: _saves,
    STALL: _stalls,
    LOAD: _loads,
}
"""By name: what makes the contenders for a model of a state, in a folder."""
