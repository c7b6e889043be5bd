"""T16: file systems that lack something, or show late what others wrote; kills on these too."""

import contextlib
import errno
import os
import signal
import stat
import time

import pytest

from tests.faults import broken
from tests.faults.group import Group
from tests.faults.oslayer import Layer, Once
from tests.faults.trials import MODES, Report, beginning, next_step, saver, serve

LATE = 0.2
"""Seconds that a client of the stale file system takes its old answers for true."""


class Refusing:
    """A file system that refuses some operations, as one that does not have them does."""

    def __init__(self, number, refuses):
        self.number, self.refuses = number, refuses

    def __call__(self, operation):
        if self.refuses(operation):
            raise OSError(self.number, os.strerror(self.number), operation.path)


def _is_folder(operation):
    return operation.name == "fsync" and stat.S_ISDIR(os.fstat(operation.fd).st_mode)


SHIMS = {
    "no hard links (FAT, FUSE)": Refusing(errno.EPERM, lambda op: op.name == "link"),
    "no hard links (SMB)": Refusing(errno.EOPNOTSUPP, lambda op: op.name == "link"),
    "no rename": Refusing(errno.EPERM, lambda op: op.name in ("rename", "replace")),
    "no flush of folders": Refusing(errno.EINVAL, _is_folder),
    "no allocation": Refusing(errno.EOPNOTSUPP, lambda op: op.name == "allocate"),
    "no direct I/O": Refusing(errno.EINVAL, lambda op: op.flags & os.O_DIRECT),
    "late listings": None,
    "clock a day ahead": None,
    "clock a day behind": None,
}
_CLOCKS = {"clock a day ahead": 86_400.0, "clock a day behind": -86_400.0}


@contextlib.contextmanager
def late_answers(seconds):
    """Have this process's listings, and its answers that a file is not there, be old.

    So a network file system's client answers from its cache. What the process itself changes
    it sees at once, as such a client does.
    """
    real_listdir, real_stat = os.listdir, os.stat
    listings, absences = {}, {}

    def listdir(path="."):
        known = listings.get(os.fspath(path))
        if known is None or known[0] < time.monotonic():
            known = (time.monotonic() + seconds, real_listdir(path))
            listings[os.fspath(path)] = known
        return list(known[1])

    def stale_stat(path, *args, **kwargs):
        if isinstance(path, int) or absences.get(os.fspath(path), 0.0) < time.monotonic():
            try:
                return real_stat(path, *args, **kwargs)
            except FileNotFoundError:
                absences[os.fspath(path)] = time.monotonic() + seconds
                raise
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))

    def own_change(operation):
        for path in (operation.path, operation.second):
            if path:
                listings.pop(os.path.dirname(path), None)
                absences.pop(path, None)

    os.listdir, os.stat = listdir, stale_stat
    try:
        with Layer(after=own_change):
            yield
    finally:
        os.listdir, os.stat = real_listdir, real_stat


@contextlib.contextmanager
def clock_off_by(seconds):
    """Have this process's clock be wrong."""
    real = time.time
    time.time = lambda: real() + seconds
    try:
        yield
    finally:
        time.time = real


@contextlib.contextmanager
def playing(name, die=None):
    """Play the file system ``name``, and have each operation meet ``die`` first."""
    refusing = SHIMS[name]

    def before(operation):
        if die:
            die(operation)
        if refusing:
            refusing(operation)

    with contextlib.ExitStack() as stack:
        if name == "late listings":
            stack.enter_context(late_answers(LATE))
        if name in _CLOCKS:
            stack.enter_context(clock_off_by(_CLOCKS[name]))
        stack.enter_context(Layer(before))
        yield


def kills(share, name, world, mode, stride, scenario="retention"):
    """Kill rank 0 at its operations, and let one save come to its end."""
    report = Report()
    begin = beginning(share.folder, scenario, world=world)
    for number in (0, *share.of(range(1, 1000, stride))):
        with share.root(begin) as oracle:
            token, step = next_step(oracle, scenario)
            oracle.attempt(token, step)

            die = Once(number, lambda _: os.kill(os.getpid(), signal.SIGKILL))

            def main(side, oracle=oracle, die=die, token=token, step=step):
                armed = playing(name, die if side.rank == 0 else None)
                saver(side, oracle, token, step, mode, armed=armed)

            with Group(oracle.world, main) as group:
                group.serve(lambda g=group: g.ended() or g.members[0].status is not None, 60.0)
                if group.members[0].status != 0:
                    group.kill()
                members = group.finish()
            wrong = [f"it raises {error}" for m in members for error in m.heard("error")]
            if any(member.heard("acknowledged") for member in members):
                oracle.acknowledge(token)
            # A writer that dies is replaced, and its save is not lost.
            if members[0].status == 0 and token not in oracle.acknowledged:
                wrong.append("the save was not acknowledged")
            with playing(name):
                wrong += oracle.survives()
            report.add(name, wrong, f"operation {number}")
            if number and not die.fired:
                return report
    raise AssertionError("a save of a thousand operations")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", SHIMS)
def test_quirks(tally, scale, name, mode):
    world = 3 if name == "late listings" else 1
    report = serve(kills, name, world, mode, 5 if scale == 1 else 1, timeout=280 * scale)
    tally("T16 quirks of file systems", report)
    report.check()
    assert report.count > 5


def torn(share):
    """Kills where links are refused, judged by a restore to which a torn commit is damage."""
    with broken.torn_is_damage():
        return kills(share, "no hard links (SMB)", 1, "foreground", 1, "first")


def test_control():
    report = serve(torn)
    assert report.violations, "no kill tore a manifest"
