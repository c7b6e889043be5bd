"""T13: the memory limit of a cgroup leaves no room for a copy of the state: nobody is killed."""

import contextlib
import os
import time
from pathlib import Path

import numpy as np
import pytest

from tests.faults.group import Group
from tests.faults.oracle import Oracle, empty_state, fill
from tests.faults.trials import Report, options_of, save, serve
from trainkit.checkpoint import CheckpointManager
from trainkit.checkpoint.save import writers
from trainkit.resources.cgroups import folders

WEIGHTS = 6_000_000
STATE, SLACK = 8 * WEIGHTS, 40 << 20
"""Bytes of the state, and of what a rank and its writer need besides."""

ROOM = (1.15, 1.3, 1.5, 1.7, 1.9, 2.0, 2.1, 2.3, 2.6, 3.0)
"""Limits, in multiples of the state; from about 2 on there is room for a copy of it."""


class Limited:
    """A cgroup below this process's own, of version 1 or 2, with a memory limit."""

    def __init__(self, name, limit):
        for parent in folders("/", "memory"):
            for file in ("memory.max", "memory.limit_in_bytes"):
                self.folder = Path(parent) / name
                try:
                    self.folder.mkdir()
                    (self.folder / file).write_text(str(limit))
                    return
                except OSError as error:
                    self.reason = error
                    with contextlib.suppress(OSError):
                        self.folder.rmdir()
        raise self.reason

    def enter(self):
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self):
        end = time.monotonic() + 30
        while True:
            try:
                return self.folder.rmdir()
            except OSError:  # a process that was killed is being taken down
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)


def rank_main(side, oracle, group, blind):
    """Save twice below the limit; ``blind`` does not look at it."""
    group.enter()
    state = empty_state(oracle.size)
    if blind:
        writers.memory_left = lambda: None
    # The writer that users have: a forked one would keep the state's old pages.
    manager = CheckpointManager(
        oracle.root, state, keep=oracle.keep, options=options_of("background")
    )
    for token in (1, 2):
        weights = np.random.default_rng(token)
        for begin in range(0, oracle.size, 1 << 16):  # no copy of all of it for a moment
            part = state["weights"][begin : begin + (1 << 16)]
            part[:] = weights.integers(0, 2**62, len(part))
        fill_the_rest(state, token, side.rank)
        save(manager, token)
        side.tell("acknowledged", token)
    manager.close()


def fill_the_rest(state, token, rank):
    weights, state["weights"] = state["weights"], state["weights"][:0]
    fill(state, token, rank)
    state["weights"] = weights


def limits(share, rooms, blind):
    """One run at each limit."""
    report = Report()
    for number, room in enumerate(share.of(rooms)):
        with share.root() as root:
            oracle = Oracle(root, keep=1, size=WEIGHTS)
            try:
                group = Limited(f"faults-{os.getpid()}-{number}", int(room * STATE) + SLACK)
            except OSError as error:
                report.notes.append(f"no memory cgroup can be made here: {error}")
                return report
            wrong = []
            try:
                run = lambda side, o=oracle, g=group: rank_main(side, o, g, blind)  # noqa: E731
                with Group(1, run) as ranks:
                    (member,) = ranks.finish(120.0)
                for token in (1, 2):
                    oracle.attempt(token)
                for token in member.heard("acknowledged"):
                    oracle.acknowledge(token)
                if member.heard("acknowledged") != [1, 2]:
                    wrong.append(f"not saved: status {member.status}, {member.heard('error')}")
            finally:
                group.remove()
            report.add("memory limit", wrong + oracle.violations(), f"{room} of the state")
    return report


def test_a_memory_limit(tally):
    # On a disk: files in memory would count against the limit.
    report = serve(limits, ROOM, False, disk=True, shards=1)
    if report.notes:
        pytest.skip(report.notes[0])
    tally("T13 memory limit", report)
    report.check()
    assert report.count == len(ROOM)


def test_control():
    report = serve(limits, ROOM[:2], True, disk=True, shards=1)
    if report.notes:
        pytest.skip(report.notes[0])
    assert report.violations, "no limit was tight enough to tell"
