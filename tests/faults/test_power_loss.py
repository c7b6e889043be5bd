"""T3: power is lost at any moment, and with it whatever was not flushed."""

import itertools
import math
import threading

import pytest

from tests.faults import broken
from tests.faults.oracle import Oracle, empty_state, fill
from tests.faults.powerloss import (
    Crash,
    Log,
    fingerprint,
    lay_out,
    prefix_crashes,
    random_crashes,
    single_crashes,
    tree_after,
)
from tests.faults.trials import Report, options_of, save, serve, storage_is, writers_here
from trainkit.checkpoint import CheckpointManager
from trainkit.coordination import Communicator, MemoryStore

SINGLES, SAMPLES = 150, 600
"""How many states CI looks at, apart from all prefixes; those that are alike count once."""


def recorded(top, storage=None, *, refuse_links=False, world=1, mode="foreground"):
    """The log of a run that saves, is restarted, saves one step anew, and removes old steps."""
    top.mkdir()
    log = Log(top, refuse_links=refuse_links)
    with log, storage_is(storage), writers_here():
        for life in ([(1, 1), (2, 2), (3, 3)], [(4, 3), (5, 4)]):
            store = MemoryStore()
            ranks = [
                threading.Thread(
                    target=live, args=(log, life, mode, Communicator(store, rank, world))
                )
                for rank in range(world)
            ]
            for rank in ranks:
                rank.start()
            for rank in ranks:
                rank.join()
    # What was recorded is all that happened, or the states below would be of another run.
    there = tree_after(log.effects, Crash(len(log.effects), frozenset()))
    assert there == {
        str(path.relative_to(top)): None if path.is_dir() else path.read_bytes()
        for path in top.rglob("*")
    }
    return log.effects


def live(log, saves, mode, communicator):
    """One rank from start to end."""
    state = empty_state(2048)
    manager = CheckpointManager(
        log.top / "run", state, keep=2, options=options_of(mode), communicator=communicator
    )
    manager.restore_latest()
    for token, step in saves:
        fill(state, token, communicator.rank)
        if communicator.rank == 0:
            log.note("attempt", token, step)
        save(manager, step)
        if communicator.rank == 0:
            log.note("acknowledge", token)
    manager.close()


def judge(share, effects, world, crashes, report, kind, seen, enough):
    """Look at each state that is not among those ``seen``, until ``enough`` are violations."""
    for crash in crashes:
        if len(report.violations) >= enough:
            return
        tree = tree_after(effects, crash)
        notes = [e.note for e in effects[: crash.prefix] if e.kind == "note"]
        key = (fingerprint(tree), len(notes))
        if key in seen:
            continue
        seen.add(key)
        with share.root() as top:
            lay_out(tree, top)
            oracle = Oracle(top / "run", keep=2, world=world)
            for what, *values in notes:
                getattr(oracle, what)(*values)
            report.add(kind, oracle.violations(), f"{crash}")


def trials(share, storage, refuse_links, world, mode, scale):
    """All prefixes, then single changes lost, then any of them and torn writes."""
    report, seen, enough = Report(), set(), math.inf if storage is None else 1
    storage = storage and getattr(broken, storage)
    effects = recorded(
        share.folder / "top", storage, refuse_links=refuse_links, world=world, mode=mode
    )
    judge(
        share, effects, world, share.of(prefix_crashes(effects)), report, "prefixes", seen, enough
    )
    singles = list(single_crashes(effects))
    chosen = share.of(singles[:: max(1, len(singles) // (SINGLES * scale))])
    judge(share, effects, world, chosen, report, "single changes", seen, enough)
    crashes = itertools.islice(
        random_crashes(effects, seed=share.number), SAMPLES * scale // share.shards
    )
    judge(share, effects, world, crashes, report, "samples", seen, enough)
    return report


@pytest.mark.parametrize(
    ("world", "links", "mode"),
    [
        (1, True, "foreground"),
        (1, False, "foreground"),
        (1, True, "background"),
        (1, False, "background"),
        (3, True, "background"),
    ],
)
def test_power_loss(tally, scale, world, links, mode):
    report = serve(trials, None, not links, world, mode, scale, timeout=280 * scale)
    tally("T3 power loss", report)
    report.check()
    assert report.faults["prefixes"] > 100
    assert report.faults["samples"] > 10


@pytest.mark.parametrize("storage", ["NoFlush", "NoFolderFlush", "ManifestFirst"])
def test_control(storage):
    report = serve(trials, storage, False, 1, "foreground", 1)
    assert report.violations, f"{report.count} states did not show that {storage} is broken"
