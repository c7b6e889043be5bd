"""The hygiene of tests/conftest.py, tried on a small project whose tests leak."""

import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from trainkit.testing import requires_module, run_ranks

CONFTEST = Path(__file__).parents[1] / "conftest.py"

LEAKS = {
    "environment": (
        "os.environ['LEFT_SET'] = 'value'",
        "environment: LEFT_SET was None and is 'value'",
    ),
    "removed_variable": ("del os.environ['HOME']", "environment: HOME was"),
    "secret": ("os.environ['MY_TOKEN'] = 'geheim'", "MY_TOKEN was <hidden> and is <hidden>"),
    "folder": ("os.chdir('/')", "working folder: was"),
    "handler": (
        "signal.signal(signal.SIGUSR1, lambda *_: None)",
        "signal handler: SIGUSR1 was",
    ),
    "thread": (
        "threading.Thread(target=over.wait, name='mine').start()",
        "thread: 'mine' still runs (not daemon)",
    ),
    "daemon": (
        "threading.Thread(target=over.wait, name='mine', daemon=True).start()",
        "thread: 'mine' still runs (daemon)",
    ),
    "process": ("kept.append(subprocess.Popen(['sleep', '1000']))", "runs: sleep 1000"),
    "zombie": (
        "process = subprocess.Popen(['true'], stdout=subprocess.PIPE)\n"
        "    process.stdout.read()\n    kept.append(process)",
        "ended, but nobody waited for it",
    ),
    "port": (
        "kept.append(socket.create_server(('127.0.0.1', 0)))",
        "port: this process still listens on TCP port",
    ),
    "temp_file": ("tempfile.mkdtemp(prefix='left-')", "file: {tmp}/left-"),
    "other_file": ("Path(tempfile.gettempdir(), 'bn_kydau').write_text('blatant')", "bn_kydau"),
    "repo_file": ("(ROOT / 'core.1').write_text('')", "file: {root}/core.1 was left"),
    "tests_file": ("(ROOT / 'tests' / 'x.pt').write_text('')", "/tests/x.pt was left"),
    "process_group": (
        "import torch.distributed as dist\n"
        "    dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)",
        "torch.distributed: the process group is still initialised",
    ),
}

CLEAN = """
def test_clean_monkeypatch(monkeypatch, tmp_path):
    monkeypatch.setenv("SET_FOR_NOW", "1")
    monkeypatch.chdir(tmp_path)

def test_clean_things_that_end_in_time():
    threading.Timer(0.3, print).start()
    kept.append(subprocess.Popen(["sleep", "0.3"]))
    threading.Thread(target=kept[-1].wait).start()

def test_clean_temp_files():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "x").write_text("")

def test_clean_what_python_tried_out_a_temp_folder_with_when_it_was_killed():
    Path(tempfile.gettempdir(), "bn_kydau").write_text("blat")

def test_clean_after_all_those_leaks():
    assert "LEFT_SET" not in os.environ
    assert "HOME" in os.environ
    assert Path.cwd() == ROOT
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert kept[0].poll() is not None

@pytest.fixture
def held():
    return socket.create_server(("127.0.0.1", 0))  # closed when nobody holds it any more

@pytest.mark.filterwarnings("ignore")  # Python's own about a socket that nobody closed
def test_clean_fixture_that_goes_with_its_last_reference(held):
    assert held.fileno() >= 0

def test_failed_is_not_blamed_for_leaks_too():
    os.environ["LEFT_SET"] = "value"
    raise ValueError("the test's own")

def test_clean_own_temp_folder():
    assert os.environ["TMPDIR"] == tempfile.gettempdir()
    assert os.listdir(tempfile.gettempdir()) == []
    assert "LEFT_SET" not in os.environ
"""

HEAD = """
import os, signal, socket, subprocess, sys, tempfile, threading
from pathlib import Path

import pytest
import trainkit.testing.leaks

trainkit.testing.leaks._ENDING_TIME = 1.0
ROOT = Path(__file__).parents[1]
kept = []
over = threading.Event()

@pytest.fixture(scope="module", autouse=True)
def _end_threads():
    yield
    over.set()
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """What pytest says about each test of the leaking project: test name -> failure or None."""
    root = tmp_path_factory.mktemp("leaky")
    (root / "tests").mkdir()
    shutil.copy(CONFTEST, root / "tests")
    bodies = [f"def test_leak_{kind}():\n    {body}\n" for kind, (body, _) in LEAKS.items()]
    (root / "tests" / "test_leaky.py").write_text(HEAD + "\n".join(bodies) + CLEAN)
    (root / "pytest.ini").write_text("[pytest]\n")
    [result] = run_ranks(
        "-m pytest",
        1,
        argv=["--junitxml=.report.xml", "-p", "no:cacheprovider", "--basetemp=.temp"],
        env=[{}],
        cwd=root,
        timeout=120,
        check=False,
    )
    assert result.exit_code == 1, result.report()
    found = {}
    for case in ElementTree.parse(root / ".report.xml").iter("testcase"):
        wrong = [child.get("message", "") + (child.text or "") for child in case]
        found[case.get("name")] = "\n".join(wrong) or None
    return root, found


@requires_module("torch")
@pytest.mark.parametrize("kind", LEAKS)
def test_leak_fails_the_test_and_is_named(reports, kind):
    root, found = reports
    message = LEAKS[kind][1].format(root=root, tmp=f"{root}/.temp/t0/{list(LEAKS).index(kind)}")
    failure = found[f"test_leak_{kind}"]
    assert failure is not None
    assert "the test leaks:" in failure
    assert message in failure
    assert "geheim" not in failure
    # One leak, one line: the others are not blamed for it.
    assert failure.count("\n  ") == failure.count("the test leaks:\n  ")


@requires_module("torch")
def test_tests_that_leave_nothing_pass(reports):
    _, found = reports
    clean = {name: failure for name, failure in found.items() if name.startswith("test_clean")}
    assert len(clean) == 7
    assert set(clean.values()) == {None}


@requires_module("torch")
def test_test_that_fails_is_reported_once_and_its_leaks_are_undone(reports):
    failure = reports[1]["test_failed_is_not_blamed_for_leaks_too"]
    assert "the test's own" in failure
    assert "the test leaks:" not in failure


@requires_module("torch")
def test_every_test_was_seen(reports):
    assert len(reports[1]) == len(LEAKS) + 8
