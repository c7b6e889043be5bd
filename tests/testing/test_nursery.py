"""The process that forks ranks: started once, fit for forking, and gone with its parent."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from trainkit.processes.table import descendants, process_table
from trainkit.testing import NurseryLost, connection, requires_module, run_ranks, start_ranks
from trainkit.testing.connection import Connection, nursery_for
from trainkit.waiting import Deadline, wait_until

ORPHAN_MAKER = """
import os, sys, threading
from trainkit.testing import start_ranks

sys.path.append({folder!r})
with start_ranks("ranks_of_orphan_maker:wait", 2, preload=()) as ranks:
    for handle in ranks:
        handle.wait_for("ready")
    print("ready", flush=True)
    threading.Event().wait()
"""

ORPHAN_RANKS = """
import subprocess, threading

def wait():
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    print("ready")
    threading.Event().wait()
"""


def parent_ranks() -> int:
    return os.getppid()


def torch_seen_ranks() -> tuple[int, bool]:
    return os.getppid(), "torch" in sys.modules


def end_parent_ranks() -> None:
    os.kill(os.getppid(), 9)
    while True:
        os.getppid()


def wait_ranks() -> None:
    threading.Event().wait()


def waste_descriptors_ranks() -> None:
    for _ in range(20):
        os.dup(1)
    subprocess.Popen(["sleep", "1000"], start_new_session=True)


@pytest.fixture
def own_nursery():
    """A nursery of this test's own, in a process that starts none."""
    nursery = Connection(())
    yield nursery
    nursery.close()


def test_second_run_uses_the_nursery_of_the_first():
    parents = {run_ranks(parent_ranks, 1, preload=())[0].value for _ in range(3)}
    assert parents == {nursery_for(()).pid}


@requires_module("torch")
def test_torch_is_imported_once_for_all_ranks():
    nursery = nursery_for(("torch",))
    before = nursery.ask(op="status")
    results = run_ranks(torch_seen_ranks, 2) + run_ranks(torch_seen_ranks, 2)
    after = nursery.ask(op="status")
    assert [result.value for result in results] == [(nursery.pid, True)] * 4
    assert after["forks"] == before["forks"] + 4
    assert after["modules"] == before["modules"]  # what ranks import stays theirs
    assert len(after["threads"]) == 1


def test_modules_that_are_not_installed_are_passed_over():
    assert run_ranks(parent_ranks, 1, preload=("no_such_framework",))[0].exit_code == 0


def test_preload_that_starts_a_thread_is_refused(tmp_path, monkeypatch):
    (tmp_path / "threaded.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NurseryLost, match=r"\['threaded'\] started threads"):
        Connection(("threaded",))


def test_preload_that_fails_is_shown(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("raise RuntimeError('cannot be preloaded')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NurseryLost, match="cannot be preloaded"):
        Connection(("broken",))


def test_twenty_runs_leave_nothing():
    nursery = nursery_for(())
    run_ranks(waste_descriptors_ranks, 2, preload=())
    before, ours = nursery.ask(op="status"), set(os.listdir("/proc/self/fd"))
    for _ in range(20):
        run_ranks(waste_descriptors_ranks, 2, preload=())
    after = nursery.ask(op="status")
    assert after["forks"] == before["forks"] + 40
    assert after["descriptors"] == before["descriptors"]
    assert after["runs"] == 0
    # Fewer is no leak: what another test has left to the garbage collector may go meanwhile.
    assert set(os.listdir("/proc/self/fd")) <= ours
    assert descendants(nursery.pid) == {}
    assert list(Path(os.environ["TMPDIR"]).iterdir()) == []


def test_loss_of_the_nursery_is_an_error_and_the_next_run_starts_another(own_nursery, monkeypatch):
    monkeypatch.setitem(connection._connections, ("x",), own_nursery)
    monkeypatch.delitem(sys.modules, "pytest")  # or its name is added to the key
    with pytest.raises(NurseryLost, match="is gone"):
        run_ranks(end_parent_ranks, 1, preload=("x",))
    second = nursery_for(("x",))
    assert second.pid != own_nursery.pid
    second.close()


def test_ranks_die_with_their_nursery(own_nursery, monkeypatch):
    monkeypatch.setitem(connection._connections, ("x",), own_nursery)
    monkeypatch.delitem(sys.modules, "pytest")
    pids = []

    def lose_the_nursery() -> None:
        with start_ranks(wait_ranks, 2, preload=("x",)) as ranks:
            pids.extend(handle.pid for handle in ranks)
            os.kill(own_nursery.pid, 9)

    with pytest.raises(NurseryLost, match="is gone"):
        lose_the_nursery()
    assert len(pids) == 2
    wait_until(
        lambda: not process_table().keys() & set(pids),
        what="the ranks to die with their parent",
        deadline=Deadline(30),
    )


@pytest.mark.parametrize("number", ["KILL", "TERM"])
def test_nothing_outlives_a_test_process_that_is_killed(tmp_path, number):
    (tmp_path / "ranks_of_orphan_maker.py").write_text(ORPHAN_RANKS)
    script = tmp_path / "orphan_maker.py"
    script.write_text(ORPHAN_MAKER.format(folder=str(tmp_path)))
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "ready\n"
        family = descendants(process.pid)
        # The nursery, two ranks, and a child of each in a session of its own.
        assert len(family) == 5
        subprocess.run(["kill", f"-{number}", str(process.pid)], check=True)

    def left():
        table = process_table()
        return [
            info for info in family.values()
            if info.pid in table and table[info.pid].started == info.started
        ]  # fmt: skip

    wait_until(
        lambda: not left(),
        what="the nursery and its ranks to end",
        whom=lambda: str(left()),
        deadline=Deadline(30),
    )
    assert list(Path(os.environ["TMPDIR"]).iterdir()) == []
