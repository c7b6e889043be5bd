"""T2 with a local tier: what only the nodes have survives a kill at any moment, too."""

import dataclasses
import random
import shutil
from pathlib import Path

import pytest

from tests.faults import broken
from tests.faults.group import Group
from tests.faults.oracle import SAMPLES_PER_STEP, Oracle, empty_state, fill
from tests.faults.trials import Report, forked_writers, options_of, save, serve
from trainkit.checkpoint import CheckpointManager

KILLS = {
    (1, "together", "background"): 30,
    (2, "together", "foreground"): 20,
    (2, "apart", "foreground"): 40,
    (2, "apart", "background"): 30,
}
"""How often CI kills, by number of ranks, whether they share a node, and mode of saving."""

LIVES_OF_A_ROOT = 10


def tiers(root, nodes):
    """Tells the local tier of a rank."""
    near = Path(f"{root}-near")
    return lambda rank: near / (f"node{rank}" if nodes == "apart" else "node")


def trainer(side, oracle, mode):
    """Train from the newest checkpoint on, save after each step, and upload every third."""
    state = empty_state(oracle.size)
    communicator = side.communicator() if side.world > 1 else None
    with forked_writers() if side.world > 1 else broken.nothing():
        manager = CheckpointManager(
            oracle.root,
            state,
            keep=2,
            options=dataclasses.replace(options_of(mode), upload_every=3),
            communicator=communicator,
            local_tier=oracle.near(side.rank),
        )
        step = manager.restore_latest() or 0
        while True:
            step += 1
            state["position"].consume(SAMPLES_PER_STEP)
            fill(state, step, side.rank, position=False)
            side.tell("attempted", step)
            save(manager, step)
            side.tell("acknowledged", step)


def kills(share, world, count, nodes, mode, lost):
    """Kill a job at random moments, again and again; ``lost``: its nodes' disks with it."""
    report, rng = Report(), random.Random(f"{world} {nodes} {share.number}")
    left = range(len(list(share.of(range(count)))))
    for first in left[::LIVES_OF_A_ROOT]:
        with share.root() as root:
            # Of what was acknowledged the newest alone is kept in any case.
            oracle = Oracle(root, keep=1, world=world, near=tiers(root, nodes))
            for number in left[first : first + LIVES_OF_A_ROOT]:
                _life(oracle, rng, mode)
                if lost:
                    shutil.rmtree(f"{root}-near", ignore_errors=True)
                report.add(f"{world} ranks, {nodes}", oracle.violations(), f"life {number}")
            shutil.rmtree(f"{root}-near", ignore_errors=True)
    return report


def _life(oracle, rng, mode):
    """One start of a job and its end."""
    acknowledged = rng.randrange(6)
    with Group(oracle.world, lambda side: trainer(side, oracle, mode)) as group:
        chief = group.members[0]
        group.serve(lambda: len(chief.heard("acknowledged")) >= acknowledged or group.ended(), 60)
        group.serve(group.ended, rng.uniform(0, 0.03), strict=False)
        group.kill()
        for member in group.finish():
            assert not member.heard("error"), member.heard("error")
            for step in member.heard("attempted"):
                oracle.attempt(step)
            for step in member.heard("acknowledged"):
                oracle.acknowledge(step)


@pytest.mark.parametrize(("world", "nodes", "mode"), KILLS)
def test_kills_with_a_local_tier(tally, scale, world, nodes, mode):
    count = KILLS[world, nodes, mode] * scale
    report = serve(kills, world, count, nodes, mode, False, timeout=280 * scale)
    tally("T2 kill with a local tier", report)
    report.check()
    assert report.count == count


def test_control():
    report = serve(kills, 2, 20, "apart", "foreground", True)
    assert report.violations, "no kill showed that the nodes were lost"
