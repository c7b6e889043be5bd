"""Hygiene of all tests: each has a temp folder of its own, and one that leaks fails."""

import itertools
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.cloud_servers import azure_server, google_server, store, store_server
from tests.faults.counting import (
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_terminal_summary,
    scale,
    tally,
)
from tests.object_store import s3, s3_server
from trainkit.config import environ, set_environ
from trainkit.testing.leaks import Surroundings
from trainkit.testing.plugin import ranks

__all__ = [
    "azure_server",
    "google_server",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_terminal_summary",
    "ranks",
    "s3",
    "s3_server",
    "scale",
    "store",
    "store_server",
    "tally",
]

_TESTS = Path(__file__).parent
_FAILED = pytest.StashKey[bool]()


@pytest.fixture(scope="session")
def _temp_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    # Numbered here, since tmp_path_factory looks through all folders for the next number; and
    # short, since the path of a Unix socket has at most 107 bytes.
    root = tmp_path_factory.mktemp("t")
    numbers = itertools.count()
    return (root / str(number) for number in numbers)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(autouse=True)
def _hygiene(request: pytest.FixtureRequest, _temp_folders: Iterator[Path]) -> Iterator[None]:
    """Give the test a TMPDIR, and fail it if it leaves anything anywhere."""
    # Must not use `monkeypatch`: it would be undone only after the look at the environment.
    folder = next(_temp_folders)
    folder.mkdir()
    before_tmpdir = environ().get("TMPDIR")
    _use_temp_folder(str(folder))
    before = Surroundings.now(folder, _TESTS, _TESTS.parent)
    yield
    # The test's fixtures are torn down; those objects that close what they hold when the last
    # reference goes (torch's stores have no close) are kept alive by this alone.
    request.node.funcargs.clear()
    # A test that failed anyway is not blamed for what it could not tidy up any more; its
    # traceback holds its objects, too.
    leaks = [] if _FAILED in request.node.stash else before.leaks()
    before.restore()
    _use_temp_folder(before_tmpdir)
    shutil.rmtree(folder, ignore_errors=True)
    if leaks:
        pytest.fail("the test leaks:\n  " + "\n  ".join(leaks), pytrace=False)


def _use_temp_folder(folder: str | None) -> None:
    set_environ({"TMPDIR": folder})
    tempfile.tempdir = None  # or tempfile goes on with the folder it looked up before
