"""The fault matrix: its options, and a count of faults at the end."""

import numpy  # noqa: F401 - says that this folder is not for an environment without it
import pytest

_TALLY = pytest.StashKey[dict]()


def pytest_addoption(parser):
    parser.addoption(
        "--soak", action="store_true", help="ten times as many faults; `make soak` gives it"
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--soak", default=False):
        for item in items:
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture
def scale(request):
    """How many times the faults of CI to do."""
    return 10 if request.config.getoption("--soak", default=False) else 1


@pytest.fixture
def tally(request, record_property):
    """Count a report of a class for the table at the end."""

    def count(name, report):
        row = request.config.stash.setdefault(_TALLY, {}).setdefault(name, [0, 0, 0.0])
        row[0] += report.count
        row[1] += len(report.violations)
        row[2] += report.seconds
        record_property("faults", report.count)

    return count


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(_TALLY, {})
    if not rows:
        return
    terminalreporter.section("faults")
    write = terminalreporter.write_line
    write("| class | faults | violations | seconds |")
    write("|---|---:|---:|---:|")
    for name, (faults, violations, seconds) in sorted(rows.items()):
        write(f"| {name} | {faults:,} | {violations} | {seconds:.0f} |")
    faults, violations, seconds = (sum(row[n] for row in rows.values()) for n in range(3))
    write(f"| **all** | **{faults:,}** | **{violations}** | **{seconds:.0f}** |")
