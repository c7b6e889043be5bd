"""T1: kill -9 at every system call of a save that changes anything; restart; save again."""

import os
import signal

import pytest

from tests.faults import broken, tracing
from tests.faults.group import Group
from tests.faults.oslayer import Layer, Once
from tests.faults.trials import Report, beginning, next_step, saver, serve

BY_STRACE = [
    ("retention", 1, "foreground"),
    ("first", 1, "background"),
    ("over", 1, "background"),
    ("retention", 1, "background"),
    ("retention", 3, "background"),
]
BY_FAILPOINT = [
    ("first", 1, "foreground"),
    ("over", 1, "foreground"),
    ("retention", 3, "foreground"),
    ("retention", 1, "background"),
]
"""What is there before the save that is broken off, the number of ranks, and how they save."""


def by_strace(share, scenario, world, victim, mode):
    """Kill rank ``victim`` at each of its system calls that count."""
    report = Report()
    begin = beginning(share.folder, scenario, world=world)
    last = _count_calls(share, begin, scenario, victim, mode)
    # A margin: threads and helpers may make some calls more in one run than in another.
    for number in share.of(range(1, last + 3)):
        with share.root(begin) as oracle:
            injection = tracing.killing(number)
            log = share.folder / "trace"
            members, strace = _trial(oracle, scenario, victim, mode, log, injection)
            wrong = oracle.survives()
            if strace.killed():
                report.add(f"{scenario} x{world}, rank {victim}", wrong, f"call {number}")
            assert members[victim].status in (0, -signal.SIGKILL), members
            kinds = {error[0] for member in members for error in member.heard("error")}
            assert kinds <= {"RetryableError"}, members  # of a writer that died twice
    return report


def _count_calls(share, begin, scenario, victim, mode):
    with share.root(begin) as oracle:
        members, strace = _trial(oracle, scenario, victim, mode, share.folder / "trace")
        assert [member.status for member in members] == [0] * oracle.world, members
        return strace.most_calls()


def _trial(oracle, scenario, victim, mode, log, *injections):
    token, step = next_step(oracle, scenario)
    oracle.attempt(token, step)
    with Group(oracle.world, lambda side: saver(side, oracle, token, step, mode), held=True) as g:
        with tracing.Strace(g.members[victim].pid, log, *injections) as strace:
            g.let_go()
            g.serve(lambda: g.ended() or g.members[victim].status is not None, 60.0)
        # The launcher ends the others when one has died; when none has, all come to an end.
        if g.members[victim].status != 0:
            g.kill()
        g.finish()
        if any(member.heard("acknowledged") for member in g.members):
            oracle.acknowledge(token)
        return g.members, strace


@pytest.mark.parametrize(("scenario", "world", "mode"), BY_STRACE)
def test_kill_at_every_system_call(tally, scenario, world, mode):
    reason = tracing.why_not()
    if reason:
        pytest.skip(f"{reason}; test_kill_at_every_operation kills instead")
    for victim in range(min(world, 2)):
        report = serve(by_strace, scenario, world, victim, mode)
        tally("T1 kill at every system call", report)
        report.check()
        assert report.count > 5


def by_failpoint(share, scenario, world, victim, mode, storage=None):
    """Kill rank ``victim``, or the process that writes for it, at each operation on files."""
    report = Report()
    storage = storage and getattr(broken, storage)
    begin = beginning(share.folder, scenario, world=world, storage=storage)
    for number in share.of(range(1, 1000)):
        with share.root(begin) as oracle:
            fired, wrong = _failpoint(oracle, scenario, victim, mode, number, storage)
            wrong += oracle.survives()
            if not fired:
                return report
            report.add(f"{scenario} x{world}, rank {victim}", wrong, f"operation {number}")
    raise AssertionError("a save of a thousand operations")


def _failpoint(oracle, scenario, victim, mode, number, storage):
    token, step = next_step(oracle, scenario)
    oracle.attempt(token, step)
    die = Once(number, lambda _: os.kill(os.getpid(), signal.SIGKILL))

    def main(side):
        armed = Layer(die) if side.rank == victim else None
        saver(side, oracle, token, step, mode, armed=armed, storage=storage)

    with Group(oracle.world, main) as group:
        group.serve(lambda: group.ended() or group.members[victim].status is not None, 60.0)
        rank_died = group.members[victim].status != 0
        if rank_died:
            group.kill()
        members = group.finish()
    acknowledged = any(member.heard("acknowledged") for member in members)
    if acknowledged:
        oracle.acknowledge(token)
    # A writer that dies is replaced, and its save is not lost.
    lost = not rank_died and not acknowledged
    return die.fired, [f"no rank died, and the save failed: {members}"] if lost else []


@pytest.mark.parametrize(("scenario", "world", "mode"), BY_FAILPOINT)
def test_kill_at_every_operation(tally, scenario, world, mode):
    for victim in range(min(world, 2)):
        report = serve(by_failpoint, scenario, world, victim, mode)
        tally("T1 kill at every os operation", report)
        report.check()
        assert report.count > 9


@pytest.mark.parametrize(
    ("storage", "scenario"), [("ManifestFirst", "first"), ("InPlace", "retention")]
)
def test_control(storage, scenario):
    report = serve(by_failpoint, scenario, 1, 0, "foreground", storage)
    assert report.violations, f"{report.count} kills did not show that {storage} is broken"
