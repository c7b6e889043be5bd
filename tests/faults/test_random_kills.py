"""T2: SIGKILL at random moments of training, of one rank, its writer process, or all."""

import contextlib
import os
import random
import signal
import time

import pytest

from tests.faults import broken
from tests.faults.group import Group
from tests.faults.oracle import SAMPLES_PER_STEP, Oracle, empty_state, fill
from tests.faults.trials import (
    Report,
    children_of,
    forked_writers,
    options_of,
    save,
    serve,
    storage_is,
)
from trainkit.checkpoint import CheckpointManager
from trainkit.errors import TrainkitError

KILLS = {
    (1, "foreground"): 100,
    (3, "foreground"): 50,
    (1, "background"): 90,
    (3, "background"): 60,
}
"""How often CI kills, by number of ranks and mode of saving."""

VICTIMS = {"foreground": ("group", "rank"), "background": ("group", "rank", "writer")}
LIVES_OF_A_ROOT = 40


def trainer(side, oracle, mode, storage=None):
    """Train from the newest checkpoint on, save after each step, and never end."""
    state = empty_state(oracle.size)
    communicator = side.communicator() if side.world > 1 else None
    # One rank has the writer that users have; of several it is forked, which is quicker.
    with storage_is(storage), forked_writers() if side.world > 1 else broken.nothing():
        manager = CheckpointManager(
            oracle.root,
            state,
            keep=oracle.keep,
            options=options_of(mode),
            communicator=communicator,
        )
        step = manager.restore_latest() or 0
        while True:
            step += 1
            state["position"].consume(SAMPLES_PER_STEP)
            fill(state, step, side.rank, position=False)
            side.tell("attempted", step)
            try:
                save(manager, step)
            except (OSError, TrainkitError) as error:
                side.tell("failed", repr(error))
            else:
                side.tell("acknowledged", step)


def kills(share, world, count, mode, storage):
    """Kill a job at random moments, again and again, on one root for some time."""
    report, rng = Report(), random.Random(f"{world} {share.number}")
    storage = storage and getattr(broken, storage)
    duration = 0.05  # of a save; measured as it goes
    left = range(len(list(share.of(range(count)))))
    for first in left[::LIVES_OF_A_ROOT]:
        with share.root() as root:
            oracle = Oracle(root, keep=2, world=world)
            for number in left[first : first + LIVES_OF_A_ROOT]:
                victim = rng.choice(VICTIMS[mode])
                duration = _life(oracle, rng, duration, victim, mode, storage)
                wrong = oracle.survives() if number % 4 == 0 else oracle.violations()
                report.add(f"{victim} of {world}", wrong, f"life {number}")
    return report


def _life(oracle, rng, duration, victim, mode, storage):
    """One start of a job and its end; about how long a save took."""
    acknowledged = rng.randrange(3)
    with Group(oracle.world, lambda side: trainer(side, oracle, mode, storage)) as group:
        chief = group.members[0]
        group.serve(lambda: len(chief.heard("acknowledged")) >= acknowledged or group.ended(), 60)
        began = time.monotonic()
        group.serve(group.ended, rng.uniform(0, 1.5 * duration), strict=False)
        if victim == "writer":
            for child in children_of(chief.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            # The trainer lives on: it is told, and a later save succeeds.
            more = len(chief.heard("acknowledged")) + 2
            group.serve(lambda: len(chief.heard("acknowledged")) >= more or group.ended(), 60)
        elif victim == "rank":
            group.kill(rng.randrange(oracle.world))
            # The others may go on for a while, until the launcher ends them.
            group.serve(group.ended, rng.uniform(0, 0.5 * duration), strict=False)
        assert all(member.status in (None, -signal.SIGKILL) for member in group.members)
        group.kill()
        for member in group.finish():
            assert not member.heard("error"), member.heard("error")
            assert victim == "writer" or not member.heard("failed"), member.heard("failed")
            for step in member.heard("attempted"):
                oracle.attempt(step)
            for step in member.heard("acknowledged"):
                oracle.acknowledge(step)
        done = len(chief.heard("acknowledged")) - acknowledged
        passed = time.monotonic() - began
        return min(duration, passed / done) if done > 0 else min(2.0, 1.2 * duration)


@pytest.mark.parametrize(("world", "mode"), KILLS)
def test_random_kills(tally, scale, world, mode):
    report = serve(kills, world, KILLS[world, mode] * scale, mode, None, timeout=280 * scale)
    tally("T2 kill at a random moment", report)
    report.check()
    assert report.count == KILLS[world, mode] * scale


def test_control():
    report = serve(kills, 1, 60, "foreground", "InPlace")
    assert report.violations, "no kill showed that saves were done in place"
