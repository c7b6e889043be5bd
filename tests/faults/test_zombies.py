"""T8: a process of an older generation goes on writing after a restart."""

import dataclasses
import os
import signal

import pytest

from tests.faults import broken
from tests.faults.group import Group
from tests.faults.oracle import QUICK, Oracle
from tests.faults.oslayer import Layer, Once
from tests.faults.trials import MODES, Report, beginning, saver, serve

DEEDS = ("nothing", "save", "save twice", "save the same step")
"""What the successor does while the zombie sleeps, once it has restored."""

ZOMBIE = dataclasses.replace(QUICK, timeout=2.0)
"""It waits no longer than this for the ranks of its world that are dead."""


def zombies(share, world, victim, mode, unfenced, stride):
    """Let rank ``victim`` sleep at each of its operations while a successor runs."""
    report = Report()
    begin = beginning(share.folder, "retention", world=world)
    # Those of several ranks wait long, each for ranks that are dead.
    alive = set(DEEDS if world == 1 else ("nothing", "save twice"))
    for number in share.of(range(1, 1000, stride)):
        for deed in DEEDS:
            if deed not in alive:
                continue
            with share.root(begin) as oracle:
                slept, wrong = _trial(oracle, victim, number, deed, mode, unfenced)
                if not slept:
                    alive.discard(deed)
                    continue
                report.add(f"rank {victim}, then {deed}", wrong, f"operation {number}")
        if not alive:
            return report
    raise AssertionError("a save of a thousand operations")


def _trial(oracle, victim, number, deed, mode, unfenced):
    token = 3

    def main(side):
        sleep = Once(number, lambda _: side.stop_here(), counts=_is_of_the_save)
        armed = Layer(sleep) if side.rank == victim else None
        with broken.unfenced() if unfenced else broken.nothing():
            saver(side, oracle, token, token, mode, options=ZOMBIE, armed=armed)

    oracle.attempt(token)
    with Group(oracle.world, main) as group:
        if not group.await_stop(victim):
            return False, []
        # The launcher of the old pod has ended the other ranks, or its node is cut off.
        if oracle.world > 1:
            group.kill(*(rank for rank in range(oracle.world) if rank != victim))
        os.kill(group.members[victim].pid, signal.SIGSTOP)  # where it is its writer that sleeps
        wrong = oracle.violations()
        was_committed = oracle.restored == token
        saved = _successor(oracle, deed)
        group.resume(victim)
        said = group.finish()[victim]
        if said.heard("acknowledged"):
            if saved and not was_committed:
                wrong.append(f"a zombie's save was acknowledged after that of {saved}")
            oracle.acknowledge(token)
        elif not said.heard("error"):
            wrong.append("a zombie neither failed nor saved")
        for kind, _, text, trace in said.heard("error"):
            if kind in ("TypeError", "AttributeError", "KeyError", "AssertionError"):
                wrong.append(f"a zombie's error is a bug: {text}\n{trace}")
    return True, wrong + oracle.survives()


def _is_of_the_save(operation):
    """Whether an operation is of a save, and not of the opening of the root.

    A process that sleeps there claims its generation when it wakes, so that it is the newer run
    of the two, and no zombie.
    """
    return "/step-" in operation.path


def _successor(oracle, deed):
    """Tokens that the successor has saved."""
    steps = {"nothing": (), "save": (3,), "save twice": (3, 4), "save the same step": (2,)}[deed]
    saved = []
    for step in steps:
        token = 10 + len(saved)
        oracle.save(token, step=step)
        saved.append(token)
    return saved


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("world", "victim"), [(1, 0), (2, 1)])
def test_zombies(tally, scale, world, victim, mode):
    stride = 1 if scale > 1 else 6 if world == 1 else 4
    shards = 20  # most of a trial is the wait for the end of a lease
    report = serve(
        zombies,
        world,
        victim,
        mode,
        False,
        stride,
        shards=shards,
        timeout=280 * scale,
    )
    tally("T8 a zombie goes on", report)
    report.check()
    assert report.count > 5


def test_control():
    report = serve(zombies, 1, 0, "foreground", True, 5)
    assert report.violations, "no zombie showed that it was let in"


def test_the_zombie_of_an_oracle_is_found(tmp_path):
    """A save that comes back after a newer one was acknowledged is a violation."""
    oracle = Oracle(tmp_path, keep=2)
    oracle.save(1)
    oracle.save(2)
    (newest,) = tmp_path.glob("step-0000000002.*")
    newest.rename(tmp_path / "hidden")
    assert any("I2" in text for text in oracle.violations())
