"""T10: a job is killed at a random step and goes on with another number of ranks: no sample is
missing and none is there twice, in any epoch, along the line of history that was kept (I7).

Ranks are real processes with a real loader, in front of a list or a stream, with its workers.
"""

import contextlib
import itertools
import random
import sys
import time
from collections import Counter

import pytest

from tests.faults.group import Group
from tests.faults.trials import WITH_TORCH, Report, forked_writers, options_of, serve
from trainkit.checkpoint import CheckpointManager, EverySteps
from trainkit.state import Progress

torch = pytest.importorskip("torch")

RUNS = 20
"""Of CI; a soak does ten times as many."""

WORLDS = (1, 2, 3, 4)
PAIRS = list(itertools.product(WORLDS, WORLDS))
"""Ranks before and after the first kill; after the second there are others again."""

BATCH_SIZE, EPOCHS = 12, 3
NUM_SAMPLES = 21 * BATCH_SIZE
"""A batch divides over any of these numbers of ranks, so that no sample is ever dropped; but an
epoch is no whole number of global batches, so that its last one is smaller."""

VICTIMS = ("group", "rank")


def value_of(sample):
    """What a sample is, beside its number: one that was mixed up with another shows."""
    return (sample * 7919 + 13) % 10007


class Listed(torch.utils.data.Dataset):
    """Samples that can be asked for by number."""

    def __len__(self):
        return NUM_SAMPLES

    def __getitem__(self, index):
        return index, value_of(index)


class Streamed(torch.utils.data.IterableDataset):
    """Samples that come one after the other, in an order of each epoch's own."""

    epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = list(range(NUM_SAMPLES))
        random.Random(self.epoch).shuffle(order)
        return ((sample, value_of(sample)) for sample in order)


def make_loader(kind, workers, shard):
    """A loader as ``ctx.setup_dataloader`` makes it."""
    from torch.utils.data import DataLoader

    from trainkit.data.torch import ShardedDataLoader

    dataset = Listed() if kind == "list" else Streamed()
    plain = DataLoader(
        dataset, BATCH_SIZE, shuffle=kind == "list" or None, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip
    return ShardedDataLoader(plain, shard=shard, seed=5)


def trainer(side, root, kind, workers, every, mode, variant):
    """A rank's life: go on where the last checkpoint was, tell each step, save some."""
    torch.set_num_threads(1)
    progress = Progress()
    with BROKEN[variant](), forked_writers():
        loader = make_loader(kind, workers, (side.rank, side.world))
        manager = CheckpointManager(
            root, {"loader": loader, "progress": progress}, save=EverySteps(every), keep=2,
            options=options_of(mode), communicator=side.communicator(),
        )  # fmt: skip
        side.tell("restored", manager.restore_latest() or 0)
        for progress.epoch in range(progress.epoch, EPOCHS):  # noqa: B020
            for samples, values in loader:
                ids = samples.tolist()
                assert values.tolist() == [value_of(sample) for sample in ids]
                progress.step += 1
                side.tell("consumed", (progress.step, progress.epoch, ids))
                manager.step(progress.step)
                side.tell("acknowledged", manager.last_saved_step or 0)
        manager.save_unsaved()
        manager.wait()
        side.tell("acknowledged", manager.last_saved_step)
        manager.close()


class Run:
    """One root, and the lives on it."""

    def __init__(self, root, rng, kind, workers, variant):
        self.root, self._rng, self._kind, self._workers = root, rng, kind, workers
        self._variant = variant
        self.lives = []

    def live(self, world, *, to_the_end):
        """One life of ``world`` ranks; the victim, or None if it came to its end."""
        rng = self._rng
        every, mode = rng.randint(1, 3), rng.choice(("foreground", "background"))
        steps = -(-NUM_SAMPLES * EPOCHS // (BATCH_SIZE * world))
        target = sys.maxsize if to_the_end else rng.randint(1, max(1, steps // 2))
        victim = rng.choice(VICTIMS)

        def main(side):
            trainer(side, self.root, self._kind, self._workers, every, mode, self._variant)

        with Group(world, main) as group:
            watched = rng.choice(group.members)
            group.serve(lambda: group.ended() or len(watched.heard("consumed")) >= target, 90.0)
            ended = group.ended()
            if victim == "rank":
                group.kill(rng.randrange(world))
                group.serve(group.ended, rng.uniform(0, 0.02), strict=False)
            group.kill()
            members = group.finish()
        self.lives.append(members)
        return None if ended else f"{victim} of {world}"

    def violations(self):
        """What is wrong with what all lives consumed; the last came to its end."""
        for member in itertools.chain(*self.lives):
            yield from (f"a rank fails: {error}" for error in member.heard("error"))
        if any(member.status != 0 for member in self.lives[-1]):
            yield f"the last life ends with {[member.status for member in self.lives[-1]]}"
        begun, durable = [], 0
        for members in self.lives:
            starts = {step for member in members for step in member.heard("restored")}
            if len(starts) > 1 or any(step < durable for step in starts):
                yield f"I2: step {durable} was saved, {starts} are restored"
            durable = max([durable, *(s for m in members for s in m.heard("acknowledged"))])
            if starts:
                begun.append((max(starts), members))
        yield from _of_history(begun)


def _of_history(begun):
    """What is wrong with the steps that were kept: ``begun`` has the first step of each life."""
    consumed = Counter()
    for (start, members), following in itertools.zip_longest(begun, begun[1:]):
        end = sys.maxsize if following is None else following[0]
        for member in members:
            kept = [told for told in member.heard("consumed") if told[0] <= end]
            if [step for step, _, _ in kept] != list(range(start + 1, start + 1 + len(kept))):
                yield f"after step {start} come {[step for step, _, _ in kept]}"
            if following is not None and start + len(kept) < end:
                yield f"step {end} is restored, of which a rank did only {start + len(kept)}"
            consumed.update((epoch, sample) for _, epoch, ids in kept for sample in ids)
    every = set(itertools.product(range(EPOCHS), range(NUM_SAMPLES)))
    missing = [one for one in every if not consumed[one]]
    twice = [one for one, count in consumed.items() if count > 1]
    if missing or twice or consumed.keys() - every:
        yield f"I7: {len(missing)} samples are missing, {len(twice)} are there twice"


def kills(share, count, variant):
    """``count`` runs, each of them killed twice."""
    report, rng = Report(), random.Random(f"{variant} {share.number}")
    pairs = random.Random(3).sample(PAIRS, len(PAIRS))
    for number in share.of(range(count)):
        kind, workers = ("list", "stream")[number % 2], (0, 2)[number // 2 % 2]
        first, second = pairs[number % len(pairs)]
        with share.root() as root:
            run = Run(root, rng, kind, workers, variant)
            victims = [run.live(world, to_the_end=False) for world in (first, second)]
            run.live(rng.choice(WORLDS), to_the_end=True)
            worlds = " → ".join(str(len(members)) for members in run.lives)
            what = f"{worlds} ranks, {kind}, {workers} workers"
            report.add(kind, list(run.violations()), f"{what}, {victims}")
            report.notes.append((first, second, workers, sum(v is not None for v in victims)))
    return report


@contextlib.contextmanager
def _state_is(change):
    """Have loaders of this process save another state than they should."""
    from trainkit.data.torch import ShardedDataLoader

    real = ShardedDataLoader.state_dict
    ShardedDataLoader.state_dict = lambda self: real(self) | change(self, real(self))
    try:
        yield
    finally:
        ShardedDataLoader.state_dict = real


BROKEN = {
    None: contextlib.nullcontext,
    "what workers hold ready counts": lambda: _state_is(
        lambda loader, state: {"consumed": state["consumed"] + 2 * BATCH_SIZE}
    ),
    "a rank counts its own samples": lambda: _state_is(
        lambda loader, state: {"consumed": state["consumed"] // loader._shard.count}
    ),
    "the epoch's beginning is saved": lambda: _state_is(
        lambda loader, state: {"consumed": 0, "finished": False}
    ),
}
"""Loaders that are broken on purpose; None is as it should be."""


def test_no_sample_is_missing_or_twice(tally, scale):
    began = time.monotonic()
    report = serve(kills, RUNS * scale, None, timeout=280.0 * scale, preload=WITH_TORCH)
    tally("T10 samples over a kill and another number of ranks", report)
    print(f"{report.count} runs, {sum(note[3] for note in report.notes)} kills, "
          f"{len({note[:2] for note in report.notes})} pairs of numbers of ranks, "
          f"{time.monotonic() - began:.0f} s")  # fmt: skip
    report.check()
    assert report.count == RUNS * scale
    assert sum(note[3] for note in report.notes) > RUNS * scale


@pytest.mark.parametrize("variant", [name for name in BROKEN if name])
def test_control(variant):
    report = serve(kills, 4, variant, preload=WITH_TORCH)
    assert any("I7" in text for text in report.violations), report.violations
