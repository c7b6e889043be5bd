"""Runs of the MNIST recipe that are killed, and what is wrong with what they did."""

import contextlib
import itertools
import json
import os
import re
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass

import torch

from tests.faults import broken
from tests.faults.trials import WITH_TORCH, children_of, storage_is
from trainkit.checkpoint.format import catalog
from trainkit.errors import ExitCode
from trainkit.storage import LocalStorage, open_storage
from trainkit.testing import RanksFailed, start_ranks

__all__ = ["BROKEN", "NUM_SAMPLES", "Run", "violations"]

RECIPE = "-m trainkit.recipes.mnist"

VICTIMS = ("pod", "ranks", "one rank")
"""All processes at a time; ranks, and what writes for them finds out; one, and later the rest."""

NUM_SAMPLES, BATCH_SIZE = 120, 8
"""An epoch is 15 steps of one rank, or 8 of two, the last with half a batch for each."""

EPOCHS = {1: 3, 2: 6}

SAVE = 0.15
"""Seconds, a little more than a save takes: a kill comes within these after one has begun."""

START = 0.8
"""Seconds from the start to the first step, about."""


@dataclass(frozen=True)
class Life:
    """One start of the recipe, as it is known after its end."""

    restored: int | None
    """The step that it began with; None if it was killed before."""
    durable: int
    """The newest step that was committed when it ended, or that it said was."""
    lines: list
    """Of each rank: its steps, in order, as (step, epoch, samples, loss)."""


class Run:
    """One folder of checkpoints, and all that is started on it. A context manager."""

    def __init__(self, folder, digits, world, variant=None):
        """Start nothing yet.

        Args:
            folder: to be made.
            digits: folder of the data.
            world: number of ranks.
            variant: what is broken in the recipe, if anything is; see `BROKEN`.
        """
        self.folder, self.digits, self.world, self.variant = folder, digits, world, variant
        self.lives = []
        self.wrong = []
        self._offsets = [0] * world
        self._lingering = contextlib.ExitStack()
        (folder / "ckpt").mkdir(parents=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._lingering.close()

    def start(self, *flags):
        """Start the recipe; a context manager of its ranks."""
        argv = [
            *("--data-dir", self.digits, "--batch-size", BATCH_SIZE),
            *("--epochs", EPOCHS[self.world], "--trace", self.folder / "trace"),
            *("--checkpoint-dir", self.folder / "ckpt", *flags),
        ]
        target, args = RECIPE, ()
        if self.variant is not None:
            target, args = broken_recipe, (self.variant,)
        return start_ranks(target, self.world, *args, argv=argv, timeout=120.0, preload=WITH_TORCH)

    def kill(self, rng):
        """One life, ended by SIGKILL: what kind of fault that was; None if it ended before."""
        victim = rng.choice(VICTIMS[: self.world + 1])
        saves, every = rng.randrange(4), rng.choice((1, 2))
        at_start = rng.random() < 0.1
        with contextlib.ExitStack() as block:
            ranks = block.enter_context(self.start("--checkpoint-every", every))
            if not at_start:
                self._await_saves(ranks, saves + 1)
            time.sleep(rng.uniform(0, START if at_start else SAVE))
            alive = self._strike(ranks, victim, rng)
            saving = self._is_saving()
            ends = {handle.wait(60.0).exit_code for handle in ranks}
            # What the life before left to itself has had until now to find out.
            self._lingering.close()
            self._lingering = block.pop_all()
            self._note(ranks)
        # Where one rank was killed, the other may have noticed, and ended, by itself.
        if 0 in ends or not alive:
            # A rank may have been done already when the other was killed.
            unlike = ends - {0, -signal.SIGKILL, ExitCode.RETRYABLE}
            self.wrong += [f"ended with {ends}: {ranks[0].output()[-2000:]}"] * bool(unlike)
            return None
        moment = "at the start" if at_start else "in a save" if saving else "between saves"
        return f"{victim} of {self.world} {moment}"

    def finish(self):
        """The last life, which nobody kills; its last line."""
        with self.start("--checkpoint-every", 8, "--output-dir", self.folder / "model") as ranks:
            self._lingering.close()
            try:
                done = json.loads(ranks.wait()[0].stdout.splitlines()[-1])
            except RanksFailed as error:
                self.wrong.append(f"the last start fails: {error}")
                done = {}
            self._note(ranks)
        return done

    def model(self):
        """The bytes of the final model; None without one."""
        path = self.folder / "model" / "model.safetensors"
        return path.read_bytes() if path.exists() else None

    def _await_saves(self, ranks, count):
        """Wait until ``count`` saves have begun, or a rank has ended."""
        known = {folder.name for folder in catalog.step_folders(self._storage)}
        seen, deadline = set(), time.monotonic() + 60.0
        while len(seen) < count and all(handle.running for handle in ranks):
            seen |= {folder.name for folder in catalog.step_folders(self._storage)} - known
            assert time.monotonic() < deadline, f"no save begins: {ranks[0].output()}"

    def _strike(self, ranks, victim, rng):
        """Kill; whether one was there to be killed."""
        order = rng.sample(list(ranks), self.world)
        writers = [pid for rank in order for pid in children_of(rank.pid)]
        alive = order[0].signal(signal.SIGKILL)
        if victim == "one rank":
            time.sleep(rng.uniform(0, 0.3))  # until the launcher ends the others
        for handle in order[1:]:
            handle.signal(signal.SIGKILL)
        for pid in writers if victim == "pod" else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return alive

    def _is_saving(self):
        root = catalog.look(self._storage)
        newest = root.committed[0].age if root.committed else (0, 0)
        return any(folder.age > newest for folder in root.uncommitted)

    def _note(self, ranks):
        """Keep what a life did that has ended."""
        said = ranks[0].output()
        restored = re.search(r"restored step (\d+) from", said)
        steps = [int(step) for step in re.findall(r"saved step (\d+) to", said)]
        committed = catalog.look(self._storage).committed[:1]
        durable = max([0, *steps, *(folder.step for folder in committed)])
        lines = [self._new_lines(rank) for rank in range(self.world)]
        begun = 0 if any(lines) else None
        self.lives.append(Life(int(restored[1]) if restored else begun, durable, lines))

    def _new_lines(self, rank):
        """What was added to a trace since the life before; a line cut by the kill is none."""
        path = self.folder / "trace" / f"rank-{rank}.jsonl"
        if not path.exists():
            return []
        data = path.read_bytes()
        new = data[self._offsets[rank] :].decode()
        self._offsets[rank] = len(data)
        whole = new[: new.rfind("\n") + 1].split("\n")
        lines = [json.loads(line) for line in whole if line]
        return [(line["step"], line["epoch"], line["samples"], line["loss"]) for line in lines]

    @property
    def _storage(self):
        return open_storage(self.folder / "ckpt")


def violations(run, unbroken):
    """What is wrong with the lives of a run that has ended, beside one that nobody broke off."""
    wrong = list(run.wrong)
    (whole,) = unbroken.lives
    expected = [{line[0]: line for line in lines} for lines in whole.lines]
    durable = 0
    for number, life in enumerate(run.lives):
        if life.restored is not None and life.restored < durable:
            wrong.append(f"I2: step {durable} was saved, {life.restored} is restored")
        durable = max(durable, life.durable)
        for rank, lines in enumerate(life.lines if life.restored is not None else ()):
            steps = [line[0] for line in lines]
            if steps != list(range(life.restored + 1, life.restored + 1 + len(steps))):
                wrong.append(f"life {number}: after {life.restored}, rank {rank} did {steps}")
            for line in lines:
                if line != expected[rank].get(line[0]):
                    wrong.append(f"I7: life {number}, rank {rank}: {line} differs")
    wrong += _of_history(run)
    if run.model() != unbroken.model():
        wrong.append("the final model differs")
    return wrong


def _of_history(run):
    """What is wrong with the samples of the steps that were kept."""
    consumed = Counter()
    lives = [life for life in run.lives if life.restored is not None]
    for life, following in itertools.zip_longest(lives, lives[1:]):
        end = following.restored if following is not None else sys.maxsize
        for lines in life.lines:
            kept = [line for line in lines if line[0] <= end]
            if following is not None and len(kept) < end - life.restored:
                yield f"step {end} was restored, which was not done after {life.restored}"
            consumed.update((line[1], sample) for line in kept for sample in line[2])
    for epoch in range(EPOCHS[run.world]):
        for sample in range(NUM_SAMPLES):
            if (count := consumed[epoch, sample]) != 1:
                yield f"I7: sample {sample} of epoch {epoch} was consumed {count} times"


class Forgetful(LocalStorage):
    """Says that every commit is done, and does every other one only."""

    reopenable = False

    def create(self, path, data):
        if not (path.endswith("/MANIFEST.json") and int(path[5:15]) % 2 == 0):
            super().create(path, data)


def _without_loader():
    from trainkit.data.torch import ShardedDataLoader

    return broken.replaced(ShardedDataLoader, "load_state_dict", lambda self, state: None)


def _without_optimizer():
    return broken.replaced(torch.optim.Adam, "load_state_dict", lambda self, state: None)


BROKEN = {
    "the loader's state is not restored": (_without_loader, "I7"),
    "the optimizer's state is not restored": (_without_optimizer, "differs"),
    "an older checkpoint is restored": (broken.oldest_restored, "I2"),
    "a save is said to be done before it is": (lambda: storage_is(Forgetful), "I2"),
}


def broken_recipe(variant):
    """The recipe, with something broken in its process."""
    from trainkit.recipes import mnist

    with BROKEN[variant][0]():
        mnist.run_recipe(mnist.main, mnist.Config, None)
