"""``trainkit launch`` as a real process, and a proof that nothing of it is left."""

import itertools
import os
import random
import signal
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainkit.processes.table import process_table
from trainkit.waiting import Deadline, wait_until

PLAIN = """
import os, sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
rank, restart = dist.get_rank(), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
def meet():
    x = torch.ones(1)
    dist.all_reduce(x)
    return int(x)
print("there", rank, meet(), restart, flush=True)
"""
"""Begins a script of torch as people write it, without trainkit."""

TRAINING = """
import os, time
import torch, trainkit
from trainkit.checkpoint import EverySteps
def main(ctx):
    progress = trainkit.Progress()
    model = ctx.setup(torch.nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpoints = ctx.checkpoints(
        save=EverySteps(int(os.environ.get("EVERY", "5"))),
        model=model, optimizer=optimizer, progress=progress,
    )
    at = checkpoints.restore_latest()
    print("began", ctx.rank, ctx.world_size, at, flush=True)
    while progress.step < int(os.environ["STEPS"]):
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        progress.step += 1
        time.sleep(float(os.environ.get("PAUSE", "0")))
        print("step", ctx.rank, progress.step, flush=True)
        checkpoints.step(progress.step)
    print("weights", ctx.rank, float(sum(p.sum() for p in model.parameters())), flush=True)
if __name__ == "__main__":
    trainkit.run(main, seed=0)
"""


class Launched:
    """One launcher that runs, and what it prints."""

    def __init__(self, argv, environ, folder, before=()):
        self.mark = uuid.uuid4().hex
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("TRAINKIT_", "PET_", "OMP_"))
        }
        self._files = folder / f"out-{self.mark}", folder / f"err-{self.mark}"
        with self._files[0].open("wb") as out, self._files[1].open("wb") as err:
            self.process = subprocess.Popen(
                [*before, sys.executable, "-m", "trainkit", "launch", *map(str, argv)],
                env=clean | {"MARK": self.mark, "OMP_NUM_THREADS": "1"} | environ,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def out(self):
        return self._files[0].read_text()

    @property
    def err(self):
        return self._files[1].read_text()

    def await_line(self, text, count=1):
        """Wait until ``text`` has been printed ``count`` times."""

        def there():
            ended = self.process.poll() is not None
            found = self.out.count(text) >= count
            assert found or not ended, f"it ended with {self.process.returncode}: {self.err}"
            return found

        wait_until(there, what=f"{count} × {text!r}", deadline=Deadline(120))

    def wait(self):
        """Its exit code, once it and all that it started are gone."""
        code = self.process.wait(180)
        wait_until(
            lambda: not self.left(),
            what="all processes to end",
            whom=lambda: str(self.left()),
            deadline=Deadline(20),
        )
        return code

    def left(self):
        """Processes with this launcher's mark that live: it, and all that it has started."""
        return [
            (int(path.parent.name), _read(path.parent / "cmdline").replace(b"\0", b" "))
            for path in Path("/proc").glob("[0-9]*/environ")
            if f"MARK={self.mark}".encode() in _read(path) and not _is_dead(path.parent)
        ]

    def nursery(self):
        """The process that ranks are forked from; None before it is there."""
        children = [one for one in process_table().values() if one.parent == self.process.pid]
        return min(children, key=lambda one: one.started, default=None)

    def ranks(self):
        """Processes that are ranks and live, the oldest first; spare forks are none yet."""
        nursery = self.nursery()
        living = () if nursery is None else process_table().values()
        own = [one for one in living if one.parent == nursery.pid and not one.zombie]
        found = [one for one in own if one.session == one.pid]  # what a fork makes itself first
        return sorted(found, key=lambda one: (one.started, one.pid))

    def kill(self):
        for pid, _ in self.left():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(30)


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _is_dead(folder):
    text = _read(folder / "stat")
    return not text or text[text.rindex(b")") + 2 : text.rindex(b")") + 3] in (b"Z", b"X")


@pytest.fixture
def launch(tmp_path):
    """Start ``trainkit launch`` with flags, and a script that is given as text, if any."""
    started = []
    numbers = itertools.count()  # several threads may start one at the same time

    def start(*flags, script=PLAIN, arguments=(), before=(), **environ):
        if script is not None:
            path = tmp_path / f"script{next(numbers)}.py"
            path.write_text(script)
            flags = (*flags, path)
        started.append(Launched([*flags, *arguments], environ, tmp_path, before))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.fixture
def seed(request):
    """Of all that a test does at random; printed where it fails."""
    given = request.config.getoption("--seed")
    chosen = random.SystemRandom().randrange(1 << 32) if given is None else given
    print(f"--seed {chosen} does the same again")
    return chosen


@pytest.fixture
def rounds(request):
    """How often to do something: the first number in CI, the second by `make soak`."""

    def choose(ci, soak):
        return soak if request.config.getoption("--soak") else ci

    return choose


@pytest.fixture
def repeat(request, rounds, tally):
    """Call ``trial(number)`` several times, some at the same time; all have to pass."""

    def run(trial, ci=3, soak=20, at_once=3):
        def outcome(number):
            try:
                trial(number)
            except Exception as error:
                return error
            return None

        count = rounds(ci, soak)
        with ThreadPoolExecutor(at_once) as pool:
            failed = [error for error in pool.map(outcome, range(count)) if error is not None]
        for error in failed[1:]:
            print(f"also: {error}")
        if failed:
            raise AssertionError(f"{len(failed)} of {count} failed: {failed[0]}") from failed[0]
        tally.passed(f"launch {request.node.name.removeprefix('test_')}", count)

    return run
