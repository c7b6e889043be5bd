"""T7: an object store that fails by scripts: behind a proxy, before a real server."""

import pytest

from tests.faults.storescripts import OPENINGS, RESTORES, SAVES
from tests.faults.storetrials import play
from tests.faults.trials import MODES, serve
from tests.object_store import BUCKET

NAME = "T7 an object store that fails"


def by_names(names, how):
    """Servers get names, since scripts hold functions that no other process can be sent."""
    table = {"save": SAVES, "restore": RESTORES, "open": OPENINGS}[how]
    return [script for script in table if script.name in names]


def played(share, variables, how, names, modes, storage, options):
    """`play`, by names."""
    scripts = by_names(names, how)
    return play(share, variables, BUCKET, how, scripts, modes, storage, **options)


def run(server, how, scripts, modes, storage=None, timeout=280.0, **options):
    names = [script.name for script in scripts]
    variables = dict(server.variables)
    return serve(played, variables, how, names, modes, storage, options, timeout=timeout)


@pytest.mark.parametrize("mode", MODES)
def test_saves(tally, s3_server, mode):
    report = run(s3_server, "save", SAVES, [mode])
    tally(NAME, report)
    report.check()
    assert report.count == len(SAVES)


def test_restores(tally, s3_server):
    report = run(s3_server, "restore", RESTORES, ["foreground"])
    tally(NAME, report)
    report.check()
    assert report.count == len(RESTORES)


def test_openings(tally, s3_server):
    report = run(s3_server, "open", OPENINGS, ["foreground"])
    tally(NAME, report)
    report.check()
    assert report.count == len(OPENINGS)
