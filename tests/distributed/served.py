"""Jobs with parameter servers: a program, and pods that can be killed and started one by one."""

import json
from contextlib import ExitStack
from pathlib import Path

import torch

from trainkit.errors import DeadlineError
from trainkit.testing import free_port, start_ranks

JOB = '''
"""Trains a small net, and keeps a record of each step and of what came out."""
import json, os, time
import torch, trainkit
from torch.utils.data import DataLoader

STEPS, PAUSE = int(os.environ.get("JOB_STEPS", "40")), float(os.environ.get("JOB_PAUSE", "0"))
MOMENTUM = float(os.environ.get("JOB_MOMENTUM", "0.9"))
NORM = os.environ.get("JOB_NORM") == "1"

class Data(torch.utils.data.Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(256, 16, generator=generator)
        self.y = (self.x[:, :4] + 0.3 * torch.randn(256, 4, generator=generator)).argmax(1)
    def __len__(self):
        return 256
    def __getitem__(self, index):
        return self.x[index], self.y[index], index

def main(ctx):
    torch.set_num_threads(1)
    middle = torch.nn.BatchNorm1d(32) if NORM else torch.nn.Tanh()
    net = torch.nn.Sequential(torch.nn.Linear(16, 32), middle, torch.nn.Linear(32, 4))
    model = ctx.setup(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=MOMENTUM, weight_decay=1e-3)
    loader = ctx.setup_dataloader(DataLoader(Data(), batch_size=8, shuffle=True))
    progress = trainkit.Progress()
    every = int(os.environ.get("JOB_SAVE", "10"))
    checkpoints = ctx.checkpoints(
        save=every, model=model, optimizer=optimizer, loader=loader, progress=progress)
    restored = checkpoints.restore_latest()
    print(f"begins at {progress.step}, restored {restored}", flush=True)
    with open(f"steps-{ctx.rank}.jsonl", "a") as out:
        for progress.epoch in range(progress.epoch, 1000):
            for x, y, ids in loader:
                loss = torch.nn.functional.cross_entropy(model(x), y)
                optimizer.zero_grad(); loss.backward(); optimizer.step()
                progress.step += 1
                line = {"step": progress.step, "ids": ids.tolist(), "loss": loss.item()}
                out.write(json.dumps(line) + "\\n"); out.flush()
                if progress.step in (1, 8, 20): print(f"did step {progress.step}", flush=True)
                checkpoints.step(progress.step)
                if os.path.exists("slow"): time.sleep(PAUSE)
                if progress.step >= STEPS: break
            if progress.step >= STEPS: break
    checkpoints.save_unsaved()
    torch.save(net.state_dict(), f"result-{ctx.rank}.pt")
    right = 0
    shard = ctx.setup_dataloader(DataLoader(Data(), batch_size=50), train=False)
    with torch.no_grad():
        for x, y, _ in shard:
            right += int(((model(x).argmax(1) == y) & shard.mask).sum())
    print("right", ctx.all_reduce(right, "sum"), "of", ctx.all_reduce(256.0), flush=True)

trainkit.run(main, strategy=os.environ.get("JOB_STRATEGY", "parameter_server"), seed=3)
'''


PRELOAD = (
    "torch",
    "torch._dynamo",  # which torch's optimizers import
    "trainkit.checkpoint.manager",
    "trainkit.data.torch",
    "trainkit.runtime.entry",
    "trainkit.strategies.torch.ddp",
    "trainkit.strategies.torch.local_sgd.strategy",
)
"""A job has up to five processes, and some of them start twice: imported once for all."""


class Job:
    """A job of one chief, workers and servers; pods are named ``worker-0`` and so on."""

    def __init__(self, folder: Path, *, workers: int = 1, servers: int = 1, **environ: str) -> None:
        """Give every pod an address; ``workers`` besides the chief."""
        self.folder = folder
        (folder / "job.py").write_text(JOB)
        (folder / "slow").touch()
        self.cluster = {
            "chief": [f"127.0.0.1:{free_port()}"],
            "worker": [f"127.0.0.1:{free_port()}" for _ in range(workers)],
            "ps": [f"127.0.0.1:{free_port()}" for _ in range(servers)],
            "evaluator": ["127.0.0.1:1"],
        }
        if not workers:
            del self.cluster["worker"]
        self.environ = {"OMP_NUM_THREADS": "1", "TRAINKIT_TIMEOUT": "60", **environ}
        self.pods = {}
        self._stack = ExitStack()

    def start(self, *names: str, **environ: str) -> None:
        """Start pods, as the operator of a TFJob would."""
        for name in names:
            kind, _, index = name.rpartition("-")
            task = {"type": kind, "index": int(index)}
            config = {"cluster": self.cluster, "task": task, "environment": "cloud"}
            self.start_as(name, TF_CONFIG=json.dumps(config), **environ)

    def start_as(self, name: str, **environ: str) -> None:
        """Start a pod with just these variables."""
        own = {**self.environ, **environ}
        ranks = start_ranks(
            self.folder / "job.py", 1, env=[own], cwd=self.folder, timeout=120, preload=PRELOAD
        )
        self.pods[name] = self._stack.enter_context(ranks)[0]

    def start_all(self, **environ: str) -> None:
        """Start all pods but the evaluator."""
        kinds = [(kind, len(found)) for kind, found in self.cluster.items() if kind != "evaluator"]
        self.start(*(f"{kind}-{i}" for kind, count in kinds for i in range(count)), **environ)

    def hurry(self) -> None:
        """From now on no step takes longer than it has to: what JOB_PAUSE was for has happened."""
        (self.folder / "slow").unlink()

    def end(self, seconds: float = 60.0, **codes: int) -> None:
        """Wait for all pods; each ends with 0, or as ``codes`` (with _ for -) says."""
        try:
            results = {name: pod.wait(seconds) for name, pod in self.pods.items()}
        except DeadlineError as late:
            shown = "\n".join(f"== {name}\n{pod.output()}" for name, pod in self.pods.items())
            raise AssertionError(f"{late}\n{shown}") from None
        found = {name: result.exit_code for name, result in results.items()}
        wanted = {name: codes.get(name.replace("-", "_"), 0) for name in found}
        shown = "\n".join(f"== {name}\n{result.report()}" for name, result in results.items())
        assert found == wanted, f"{found}, expected {wanted}\n{shown}"

    def output(self, name: str) -> str:
        """What a pod has printed."""
        return self.pods[name].output()

    def steps(self, rank: int) -> list[dict]:
        """Records of a worker, over all its starts."""
        path = self.folder / f"steps-{rank}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def result(self, rank: int = 0) -> dict[str, torch.Tensor]:
        """The model that a worker ended with."""
        return torch.load(self.folder / f"result-{rank}.pt", weights_only=True)

    def close(self) -> None:
        """Kill what is left."""
        self._stack.close()


def trained_by_ddp(folder: Path, ranks: int = 2, **environ: str) -> dict[str, torch.Tensor]:
    """The model of the same program with data parallel training."""
    folder.mkdir(exist_ok=True)
    (folder / "job.py").write_text(JOB)
    own = {"OMP_NUM_THREADS": "1", "JOB_STRATEGY": "ddp", **environ}
    with start_ranks(
        folder / "job.py", ranks, env=own, cwd=folder, timeout=120, preload=PRELOAD
    ) as started:
        started.wait()
    return torch.load(folder / "result-0.pt", weights_only=True)


AVERAGING = {
    "TRAINKIT_SYNC_EVERY": "1",
    "TRAINKIT_OUTER_LR": "1",
    "TRAINKIT_OUTER_MOMENTUM": "0",
}
"""With which local SGD is data parallel training."""
