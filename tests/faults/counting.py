"""A count of faults at the end of a run of tests, by class; hooks and fixtures of all tests."""

import time
from types import SimpleNamespace

import pytest

__all__ = [
    "pytest_addoption", "pytest_collection_modifyitems", "pytest_terminal_summary", "scale", "tally"
]  # fmt: skip

_PROPERTY = "faults"
"""Under this name a test's report says what it did, wherever the test ran."""


def pytest_addoption(parser):
    parser.addoption(
        "--soak",
        action="store_true",
        help="ten times as many faults and more; `make soak` gives it",
    )
    parser.addoption(
        "--seed", type=int, help="of the moments of kills; a test that fails prints its own"
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--soak"):
        for item in items:
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture
def scale(request):
    """How many times the faults of CI to do."""
    return 10 if request.config.getoption("--soak") else 1


class Tally:
    """Tells what one test did."""

    def __init__(self, record):
        self._record = record
        self._began = time.monotonic()

    def __call__(self, name, report):
        """Count a `Report` of a class, whose name begins with T and its number."""
        self._record(_PROPERTY, [name, report.count, len(report.violations), report.seconds])

    def passed(self, name, count):
        """Count trials of a test that would have failed by the first violation."""
        seconds = time.monotonic() - self._began
        self(name, SimpleNamespace(count=count, violations=[], seconds=seconds))


@pytest.fixture
def tally(record_property):
    """Count reports of a class for the table at the end."""
    return Tally(record_property)


def pytest_terminal_summary(terminalreporter):
    rows = _rows(terminalreporter)
    if not rows:
        return
    terminalreporter.section("faults")
    write = terminalreporter.write_line
    write("| class | faults | violations | controls caught | seconds |")
    write("|---|---:|---:|---:|---:|")
    for name, row in sorted(rows.items(), key=lambda item: (_number(item[0]), item[0])):
        controls = _controls(terminalreporter, row.files)
        write(f"| {name} | {row.faults:,} | {row.violations} | {controls} | {row.seconds:.0f} |")
    faults, violations, seconds = (
        sum(getattr(row, what) for row in rows.values())
        for what in ("faults", "violations", "seconds")
    )
    controls = _controls(terminalreporter, {file for row in rows.values() for file in row.files})
    write(f"| **all** | **{faults:,}** | **{violations}** | {controls} | **{seconds:.0f}** |")


def _rows(terminalreporter):
    """By class, what all tests together did, whichever process they ran in."""
    rows = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            for key, told in report.user_properties if report.when == "call" else ():
                if key != _PROPERTY:
                    continue
                name, faults, violations, seconds = told
                row = rows.setdefault(
                    name, SimpleNamespace(faults=0, violations=0, seconds=0.0, files=set())
                )
                row.faults += faults
                row.violations += violations
                row.seconds += seconds
                row.files.add(report.nodeid.partition("::")[0])
    return rows


def _number(name):
    digits = name.removeprefix("T").partition(" ")[0]
    return int(digits) if digits.isdecimal() else 0


def _controls(terminalreporter, files):
    """Of the tests in these files that break something on purpose, how many saw it break."""
    ended = {True: 0, False: 0}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, ()):
            file, _, test = report.nodeid.partition("::")
            if file in files and test.startswith("test_control"):
                ended[outcome == "passed"] += 1
    total = sum(ended.values())
    return f"{ended[True]} of {total}" if total else "–"
