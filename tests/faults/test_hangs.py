"""T14: one rank stops, and neither dies nor goes on; the others name it when time is up."""

import re
import time

import pytest

from tests.faults.group import Group
from tests.faults.oracle import Box, Oracle, empty_state, fill
from tests.faults.oslayer import Layer, Once
from tests.faults.trials import MODES, Report, forked_writers, options_of, save, serve
from trainkit.checkpoint import CheckpointManager, CheckpointOptions, saving
from trainkit.errors import DeadlineError, TrainkitError
from trainkit.state import PerRank

WORLD, DEADLINE = 3, 3.0

PHASES = [
    *((0, "operation", number) for number in range(1, 46, 5)),
    *((rank, "operation", number) for rank in (1, 2) for number in (1, 6, 11)),
    *((rank, phase, 0) for rank in (0, 2) for phase in ("state_dict", "load_state_dict")),
]  # fmt: skip
"""Which rank stops, and where: at the n-th operation on a file after the first save, or in the
calls that give and take its state."""


class Stopping(Box):
    """A state that stops its process in one of its methods."""

    def __init__(self, value, side, phase):
        super().__init__(value)
        self.side, self.phase = side, phase

    def state_dict(self):
        self._look("state_dict")
        return super().state_dict()

    def load_state_dict(self, state_dict):
        self._look("load_state_dict")
        super().load_state_dict(state_dict)

    def _look(self, phase):
        if self.phase == phase:
            self.phase = None
            self.side.stop_here()


def rank_main(side, oracle, victim, phase, number, deadline, mode):
    """Save, restore and save until an error; say which, and after how long."""
    state = fill(empty_state(oracle.size), 1, side.rank)
    mine = side.rank == victim
    state["own"] = PerRank(Stopping(state["own"].value.value, side, None))
    options = CheckpointOptions(timeout=deadline, attempts=1, pause=0.001, visible_within=deadline)
    # What is long beside the half hour that a job gives a save is long beside seconds.
    saving._MARGIN = deadline / 3

    hook = Once(number, lambda _: side.stop_here(), armed=False)
    began = time.monotonic()
    try:
        with forked_writers(), Layer(hook):
            manager = CheckpointManager(
                oracle.root, state, keep=oracle.keep, options=options_of(mode, options),
                communicator=side.communicator(60.0),
            )  # fmt: skip
            save(manager, 1)
            side.tell("acknowledged", 1)
            hook.arm(mine and phase == "operation")
            state["own"].value.phase = phase if mine else None
            if phase == "load_state_dict":
                began = time.monotonic()
                manager.restore_latest()
            for token in (2, 3, 4):
                fill(state, token, side.rank)
                began = time.monotonic()
                save(manager, token)
                side.tell("acknowledged", token)
    except (Exception, TrainkitError) as error:
        passed = time.monotonic() - began
        side.tell("raised", (isinstance(error, DeadlineError), str(error), passed))


def hangs(share, deadline, patience, mode, phases):
    """One trial for each phase."""
    report = Report()
    longest = 0.0
    for victim, phase, number in share.of(phases):
        with share.root() as root:
            oracle = Oracle(root, keep=2, world=WORLD)
            for token in (1, 2, 3, 4):
                oracle.attempt(token)
            wrong, passed = _trial(oracle, victim, phase, number, deadline, patience, mode)
            longest = max(longest, passed)
            report.add(f"rank {victim}", wrong + oracle.survives(), f"{phase} {number}")
    report.notes.append(longest)
    return report


def _trial(oracle, victim, phase, number, deadline, patience, mode):
    def main(side):
        rank_main(side, oracle, victim, phase, number, deadline, mode)

    wrong, longest = [], 0.0
    with Group(oracle.world, main) as group:
        if not group.await_stop(victim):
            return [f"rank {victim} never came to {phase} {number}"], 0.0
        others = [m for rank, m in enumerate(group.members) if rank != victim]
        if not group.serve(
            lambda: all(m.status is not None for m in others), patience, strict=False
        ):
            wrong.append(f"I5: ranks still wait after {patience} s")
        for member in others:
            for on_time, text, passed in member.heard("raised"):
                longest = max(longest, passed)
                if not on_time or not _named(victim).search(text):
                    wrong.append(f"I5: the error does not name rank {victim}: {text}")
            if member.status is not None and not member.heard("raised"):
                wrong.append("I5: a rank went on without the one that stopped")
        group.resume(victim)
        group.serve(lambda: group.members[victim].status is not None, 60.0)
        for member in group.members:
            for token in member.heard("acknowledged"):
                oracle.acknowledge(token)
    return wrong, longest


def _named(rank):
    return re.compile(
        rf"rank\(s\) {rank} of {WORLD}|waits for rank {rank}\b|rank {rank} failed: Dead"
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_rank_that_stops_is_named(tally, mode):
    # Patience is for a busy machine; how long it took is printed.
    report = serve(hangs, DEADLINE, 10 * DEADLINE, mode, PHASES, shards=len(PHASES))
    tally("T14 a rank that stops", report)
    report.check()
    assert report.count == len(PHASES)
    print(f"deadline {DEADLINE} s; the last error came after {max(report.notes):.2f} s")


def test_control():
    """Without a deadline the others wait for good, and the oracle says so."""
    report = serve(hangs, 600.0, 1.0, "foreground", PHASES[::4], shards=8)
    assert sum("still wait" in text for text in report.violations) == len(PHASES[::4])
