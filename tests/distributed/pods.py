"""Pods as real processes: each gets the environment of one operator's pod, and a deadline."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "train.py"
PYTHON = sys.executable
TORCHRUN = [PYTHON, "-m", "torch.distributed.run"]

MINE = '''
"""The user's own module, as a test writes it: it keeps a record of what its rank trained on."""
import atexit, json, os, torch, torch.distributed as dist

class Recorded(torch.utils.data.Dataset):
    def __init__(self, size):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(size, 16, generator=generator)
        self.y = torch.randint(10, (size,), generator=generator)
        self.seen, self.world_size = [], None
    def __len__(self):
        return len(self.x)
    def __getitem__(self, index):
        if self.world_size is None:
            self.world_size = dist.get_world_size() if dist.is_initialized() else 1
            self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.seen.append(index)
        return self.x[index], self.y[index]
    def write(self):
        if self.seen:
            record = {"rank": self.rank, "world_size": self.world_size, "seen": self.seen}
            with open(os.path.join(os.environ["MINE_OUT"], f"{os.getpid()}.json"), "w") as out:
                json.dump(record, out)

data = Recorded(256)
atexit.register(data.write)

class Net(torch.nn.Linear):
    def __init__(self):
        super().__init__(16, 10)
'''


def clean_environ(**variables):
    """What a container has of itself: no operator's and no launcher's variables."""
    kept = {k: os.environ[k] for k in ("PATH", "HOME", "LANG", "PYTHONPATH") if k in os.environ}
    return {**kept, "OMP_NUM_THREADS": "1", "TRAINKIT_TIMEOUT": "120", **variables}


@dataclass
class Pod:
    """One running command."""

    process: subprocess.Popen
    output: str = ""

    def end(self, deadline):
        left = max(1.0, deadline - time.monotonic())
        try:
            self.output, _ = self.process.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            self.stop()
            raise AssertionError(f"a pod did not end in time:\n{self.output}") from None
        return self.process.returncode

    def stop(self):
        """End the whole process group, whatever state it is in."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        if not self.output:
            self.output, _ = self.process.communicate()


@dataclass
class Cluster:
    """Pods of one test, in one folder, all of them ended when the test is."""

    folder: Path
    pods: list[Pod] = field(default_factory=list)

    def start(self, command, **environ):
        # torchrun leaves its folder of logs behind, so the pods get a temp folder of their own
        (self.folder / "tmp").mkdir(exist_ok=True)
        own = {"MINE_OUT": str(self.folder), "TMPDIR": str(self.folder / "tmp")}
        environ = clean_environ(**own, **environ)
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.pods.append(Pod(process))
        return self.pods[-1]

    def end(self, seconds=240, codes=None):
        """Wait for all pods; every one must end with 0, or as ``codes`` says."""
        deadline = time.monotonic() + seconds
        found = [pod.end(deadline) for pod in self.pods]
        wanted = codes if codes is not None else [0] * len(found)
        if found != wanted:
            shown = "\n\n".join(f"--- {p.process.args}\n{p.output}" for p in self.pods)
            raise AssertionError(f"exit codes {found}, expected {wanted}\n{shown}")

    def output(self):
        return "\n".join(pod.output for pod in self.pods)

    def records(self):
        """What each rank trained on, by rank."""
        found = [json.loads(path.read_text()) for path in self.folder.glob("*.json")]
        for path in self.folder.glob("*.json"):
            path.unlink()
        return sorted(found, key=lambda record: record["rank"])

    def stop(self):
        for pod in self.pods:
            pod.stop()


def assert_trained_together(records, world_size, epochs=10, size=256):
    """Every rank saw its own part of every epoch, and together they saw all of it."""
    assert [r["rank"] for r in records] == list(range(world_size))
    assert {r["world_size"] for r in records} == {world_size}
    share = size // world_size
    for epoch in range(epochs):
        parts = [r["seen"][epoch * share : (epoch + 1) * share] for r in records]
        assert sorted(i for part in parts for i in part) == list(range(size))
    assert all(len(r["seen"]) == epochs * share for r in records)
