"""T5: any one operation of one rank fails: the save raises on all ranks, or is whole."""

import errno
import os

import pytest

from tests.faults import broken, tracing
from tests.faults.group import Group
from tests.faults.oracle import Oracle, empty_state, fill
from tests.faults.oslayer import Layer, Once
from tests.faults.trials import MODES, Report, forked_writers, options_of, save, serve, storage_is
from trainkit.checkpoint import CheckpointManager
from trainkit.errors import TrainkitError

ERRORS = (errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT, errno.ETIMEDOUT)
WORLD = 3


def failing(number, error):
    """A hook that fails at the n-th operation, with an error or by writing less than asked."""

    def fail(operation):
        if error == "short":
            return len(operation.data) // 2 if operation.data else None
        raise OSError(error, os.strerror(error), operation.path)

    return Once(number, fail, armed=False)


def rank_main(side, oracle, hook, mode, storage):
    """Save in health, under the fault, and in health again; say how each went."""
    state = empty_state(oracle.size)
    with storage_is(storage), forked_writers(), Layer(hook):
        manager = CheckpointManager(
            oracle.root,
            state,
            keep=oracle.keep,
            options=options_of(mode),
            communicator=side.communicator(),
        )
        for token in (1, 2, 3):
            fill(state, token, side.rank)
            hook.arm(token == 2)
            try:
                save(manager, token)
            except (OSError, TrainkitError) as error:
                side.tell("raised", (token, getattr(error, "errno", None), str(error)))
            else:
                side.tell("acknowledged", token)
        manager.close()


def trial(oracle, rank, number, error, mode, storage):
    """One fault; whether there was an operation to fail, and what is wrong."""
    hooks = [failing(number if r == rank else 0, error) for r in range(oracle.world)]

    def main(side):
        return rank_main(side, oracle, hooks[side.rank], mode, storage)

    for token in (1, 2, 3):
        oracle.attempt(token)
    wrong = []
    with Group(oracle.world, main) as group:
        members = group.finish()
        came_to = [{t: None for t in m.heard("acknowledged")} for m in members]
        for member, outcome in zip(members, came_to, strict=True):
            outcome |= {token: number for token, number, _ in member.heard("raised")}
            wrong += [f"a rank died: {text}" for text in member.heard("error")]
    if any(outcome != came_to[0] for outcome in came_to):
        wrong.append(f"not the same on all ranks: {came_to}")
    if set(came_to[0]) != {1, 2, 3} or any(came_to[0][token] is not None for token in (1, 3)):
        wrong.append(f"a save without a fault failed: {came_to}")
    if came_to[0].get(2) not in (None, error):
        wrong.append(f"another error than {error} came out: {came_to[0]}")
    for token in (1, 2, 3):
        if came_to[0].get(token, 0) is None:
            oracle.acknowledge(token)
    return hooks[rank].fired, wrong + oracle.violations() + oracle.orphans()


def failures(share, rank, errors, mode, storage, stride):
    """Fail at each operation, or every ``stride``-th, with one of the errors in turn."""
    report = Report()
    storage = storage and getattr(broken, storage)
    for number in share.of(range(1, 1000, stride)):
        with share.root() as root:
            oracle = Oracle(root, keep=2, world=WORLD)
            error = errors[number // stride % len(errors)]
            hit, wrong = trial(oracle, rank, number, error, mode, storage)
            if not hit:
                assert not wrong, wrong
                return report
            name = error if error == "short" else errno.errorcode[error]
            report.add(f"rank {rank}", wrong, f"{name} at operation {number}")
    raise AssertionError("a save of a thousand operations")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rank", range(WORLD))
def test_an_error_at_every_operation(tally, scale, rank, mode):
    for turn in range(1 if scale == 1 else len(ERRORS)):
        errors = ERRORS[turn:] + ERRORS[:turn]
        report = serve(failures, rank, errors, mode, None, 1, timeout=280 * scale)
        tally("T5 an error of one operation", report)
        report.check()
        assert report.count > 9


@pytest.mark.parametrize(("rank", "mode"), [(0, "background"), (2, "foreground")])
def test_a_short_write_at_every_operation(tally, rank, mode):
    report = serve(failures, rank, ("short",), mode, None, 1)
    tally("T5 an error of one operation", report)
    report.check()


def test_control():
    report = serve(failures, 1, ERRORS, "foreground", "Swallowing", 1)
    assert report.violations, "no error showed that errors are swallowed"


def interrupted(share, mode):
    """Real system calls that are interrupted."""
    report = Report()
    calls = ("openat", "write", "pwrite64", "fsync", "fdatasync", "ftruncate", "fallocate")
    numbers = share.of((call, number) for call in calls for number in range(1, 12))
    for call, number in numbers:
        with share.root() as root:
            oracle = Oracle(root, keep=2, world=1)
            oracle.attempt(1)

            def main(side, oracle=oracle):
                state = fill(empty_state(oracle.size), 1)
                options = options_of(mode)
                with forked_writers():
                    manager = CheckpointManager(oracle.root, state, keep=2, options=options)
                    save(manager, 1)
                manager.close()

            with Group(1, main, held=True) as group:
                injection = f"?{call}:error=EINTR:when={number}"
                log, pid = share.folder / "trace", group.members[0].pid
                with tracing.Strace(pid, log, injection, calls=(call,)) as strace:
                    group.let_go()
                    (member,) = group.finish()
                    hit = "INJECTED" in strace.log.read_text()
            # Python itself tries again, but for the listing of a folder; that may only be raised.
            errors = member.heard("error")
            wrong = [f"it raises {e[:3]}" for e in errors if e[:2] != ("InterruptedError", 4)]
            if not errors:
                oracle.acknowledge(1)
            if hit:
                report.add("EINTR", wrong + oracle.survives(), f"{call} {number}")
    return report


@pytest.mark.parametrize("mode", MODES)
def test_interrupted_system_calls(tally, mode):
    if reason := tracing.why_not():
        pytest.skip(reason)
    report = serve(interrupted, mode)
    tally("T5 an error of one operation", report)
    report.check()
    assert report.count > 5
