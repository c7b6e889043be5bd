"""T4: the disk is full, or a file may not grow, at any byte; then there is room again."""

import ctypes
import errno
import os
import resource
import time

import pytest

from tests.faults import broken
from tests.faults.group import Group
from tests.faults.oracle import Oracle, empty_state, fill
from tests.faults.trials import (
    MODES,
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
from trainkit.testing import requires_root

SIZES = 32
"""Limits that CI tries, evenly from none of the save to a fifth more than all of it."""

WORLD, WEIGHTS, PAGE = 2, 30_000, 4096
INODES = 40
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE, _MS_REMOUNT = 0x20000, 0x4000, 1 << 18, 32


def _call(name, *args):
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _mount(path, options, flags=0):
    _call("mount", b"tmpfs", os.fsencode(path), b"tmpfs", flags, options.encode())


def rank_main(side, oracle, tighten, loosen, mode, storage=None):
    """Save in plenty, in want, and in plenty again; say how each went."""
    state = empty_state(oracle.size)
    with storage_is(storage), forked_writers():
        manager = CheckpointManager(
            oracle.root,
            state,
            keep=oracle.keep,
            options=options_of(mode),
            communicator=side.communicator(),
        )
        for token in (1, 2, 3):
            fill(state, token, side.rank)
            # Once before all come to save, or a rank that is late would loosen what is tight.
            side.communicator().named(f"save {token}").barrier()
            if token == 2:
                tighten(side.rank)
            side.communicator().named(f"want {token}").barrier()
            try:
                save(manager, token)
            except (OSError, TrainkitError) as error:
                side.tell("raised", (token, getattr(error, "errno", None), str(error)))
            else:
                side.tell("acknowledged", token)
            side.communicator().named(f"saved {token}").barrier()
            if token == 2:
                loosen(side.rank)
        manager.close()


def trial(oracle, tighten, loosen, allowed, mode, storage=None):
    """One limit; whether the save failed, and what is wrong."""
    for token in (1, 2, 3):
        oracle.attempt(token)
    wrong = []
    main = lambda side: rank_main(side, oracle, tighten, loosen, mode, storage)  # noqa: E731
    with Group(oracle.world, main) as group:
        members = group.finish()
    outcomes = [
        dict.fromkeys(m.heard("acknowledged")) | {t: n for t, n, _ in m.heard("raised")}
        for m in members
    ]
    wrong += [f"a rank died: {text}" for m in members for text in m.heard("error")]
    for number, outcome in enumerate(outcomes):
        if outcome != outcomes[0] or outcome.get(1, 0) or outcome.get(3, 0):
            wrong.append(f"rank {number} came to {outcome}, rank 0 to {outcomes[0]}")
        if outcome.get(2) not in (None, allowed):
            wrong.append(f"rank {number} raises {outcome[2]}, not {allowed}")
    for token, number in outcomes[0].items():
        if number is None:
            oracle.acknowledge(token)
    return outcomes[0].get(2) is not None, wrong + oracle.violations() + oracle.orphans()


def _apart():
    """Have this server's mounts end with it, and be seen by nobody else."""
    _call("unshare", _CLONE_NEWNS)
    _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)


def small_disks(share, count, mode, storage):
    """tmpfs of many sizes, and of many numbers of files."""
    report = Report()
    storage = storage and getattr(broken, storage)
    try:
        _apart()
    except OSError as error:
        report.notes.append(f"mounting is not permitted here: {error}")
        return report
    need = 8 * WEIGHTS + 32 * PAGE  # about what one save takes; small files take a page each
    limits = [("size", need * 6 * n // (5 * count) + PAGE) for n in range(count)]
    limits += [("nr_inodes", n) for n in range(1, INODES, max(1, 2 * INODES // count))]
    for kind, limit in share.of(limits):
        with share.root() as top:
            top.mkdir()
            _mount(top, "size=64m,nr_inodes=10000")
            try:
                failed, wrong = _on_small_disk(top, kind, limit, mode, storage)
            finally:
                _unmount(top)
            report.add(f"{kind}{' reached' if failed else ' not reached'}", wrong, f"{limit}")
    return report


def _on_small_disk(top, kind, limit, mode, storage):
    oracle = Oracle(top / "run", keep=3, world=WORLD, size=WEIGHTS)

    def tighten(rank):
        if rank == 0:
            stat = os.statvfs(top)
            used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
            total = used + limit if kind == "size" else stat.f_files - stat.f_ffree + limit
            _mount(top, f"{kind}={total // PAGE * PAGE if kind == 'size' else total}", _MS_REMOUNT)

    def loosen(rank):
        if rank == 0:
            _mount(top, "size=64m,nr_inodes=10000", _MS_REMOUNT)

    return trial(oracle, tighten, loosen, errno.ENOSPC, mode, storage)


def _unmount(top):
    end = time.monotonic() + 10
    while True:
        try:
            return _call("umount2", os.fsencode(top), 0)
        except OSError:  # a process that is ending may hold a file for a moment
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


@requires_root()
@pytest.mark.parametrize("mode", MODES)
def test_a_small_disk(tally, scale, mode):
    report = serve(small_disks, SIZES * scale, mode, None, timeout=280 * scale)
    if report.notes:
        pytest.skip(report.notes[0])
    tally("T4 full disk", report)
    report.check()
    assert report.faults["size reached"] > SIZES / 2
    assert report.faults["size not reached"] > 0, "no limit was loose enough to tell"
    assert report.faults["nr_inodes reached"] > 5


def _limit_files(limits):
    """Limit the sizes of files of this process, and of the one that writes for it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for child in children_of("self"):
        resource.prlimit(child, resource.RLIMIT_FSIZE, limits)


def file_limits(share, count, mode):
    """No file of one rank may be longer than a limit."""
    report = Report()
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for number in share.of(range(count)):
        limit, victim = 8 * WEIGHTS * 11 * number // (10 * count), number % WORLD
        with share.root() as root:
            oracle = Oracle(root, keep=3, world=WORLD, size=WEIGHTS)

            def tighten(rank, limit=limit, victim=victim):
                if rank == victim:
                    _limit_files((limit, hard))

            def loosen(rank):
                _limit_files((hard, hard))

            failed, wrong = trial(oracle, tighten, loosen, errno.EFBIG, mode)
            report.add(f"file size{' reached' if failed else ''}", wrong, f"{limit} of {victim}")
    return report


@pytest.mark.parametrize("mode", MODES)
def test_a_file_that_may_not_grow(tally, scale, mode):
    report = serve(file_limits, 32 * scale, mode)
    tally("T4 full disk", report)
    report.check()
    assert report.faults["file size reached"] > 10


@requires_root()
def test_control():
    report = serve(small_disks, 24, "foreground", "Swallowing")
    if report.notes:
        pytest.skip(report.notes[0])
    assert report.violations, "no full disk showed that errors are swallowed"
