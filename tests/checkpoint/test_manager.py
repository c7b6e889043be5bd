"""The manager as a training loop meets it."""

import json
import logging
import subprocess
import sys
import time

import numpy as np
import pytest

from trainkit import PerRank, Progress
from trainkit.checkpoint import AnyOf, CheckpointManager, EverySeconds, EverySteps
from trainkit.errors import (
    DeadlineError,
    EnvironmentFaultError,
    ExitCode,
    InputMissingError,
    Preempted,
    UsageError,
)


def test_the_first_run_finds_nothing_and_the_second_goes_on(tmp_path, box):
    manager = CheckpointManager(tmp_path, {"box": box(1)}, save=EverySteps(3))
    assert manager.restore_latest() is None
    assert manager.latest_step() is None
    assert [step for step in range(1, 8) if manager.step(step)] == [3, 6]
    manager.wait()
    assert manager.last_saved_step == 6
    again = CheckpointManager(tmp_path, {"box": (back := box())}, save=EverySteps(3))
    assert again.last_saved_step is None
    assert again.restore_latest() == 6
    assert back.value == 1
    assert again.last_saved_step == again.latest_step() == 6
    assert [step for step in range(7, 10) if again.step(step)] == [9]
    again.wait()
    assert again.all_steps() == [3, 6, 9]


def test_restore_of_one_step(tmp_path, box):
    manager = CheckpointManager(tmp_path, {"box": (it := box())})
    for step in (1, 2, 3):
        it.value = step
        manager.save(step, blocking=True)
    assert manager.restore(2) == 2
    assert it.value == 2
    with pytest.raises(InputMissingError, match="no checkpoint of step 9; it has 1, 2, 3"):
        manager.restore(9)


def test_without_a_folder_nothing_is_saved_and_one_warning_says_so(box, caplog, on_ranks):
    def rank(communicator):
        manager = CheckpointManager(
            None, {"box": box(1)}, save=EverySteps(1), communicator=communicator
        )
        assert manager.restore_latest() is None
        assert not manager.step(1)
        manager.save(1, blocking=True)
        assert manager.last_saved_step is manager.latest_step() is manager.url is None
        assert manager.all_steps() == []
        with pytest.raises(InputMissingError):
            manager.restore(1)
        manager.close()

    assert on_ranks(2, rank) == [None, None]
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "nothing is saved" in caplog.text


def test_the_manifest_tells_what_was_saved(tmp_path, box):
    CheckpointManager(tmp_path, {"box": box(1)}).save(4, metrics={"accuracy": np.float32(0.5)})
    (file,) = tmp_path.glob("step-*/MANIFEST.json")
    manifest = json.loads(file.read_text())
    assert (manifest["step"], manifest["world_size"]) == (4, 1)
    assert manifest["metrics"] == {"accuracy": 0.5}
    on_disk = {str(p.relative_to(file.parent)) for p in file.parent.rglob("*") if p.is_file()}
    assert on_disk == {*manifest["files"], "MANIFEST.json"}


def test_a_relative_folder_stays_where_it_was(tmp_path, box, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manager = CheckpointManager("run", {"box": box(1)})
    monkeypatch.chdir("/")
    manager.save(1, blocking=True)
    assert CheckpointManager(tmp_path / "run", {"box": box()}).restore_latest() == 1


def test_a_closed_manager_saves_no_more(tmp_path, box):
    manager = CheckpointManager(tmp_path, {"box": box(1)})
    manager.wait()
    manager.close()
    manager.close()
    with pytest.raises(UsageError, match="after close"):
        manager.save(1, blocking=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"keep": 0}, "keep=0"), ({"save": 100}, "save=100: expected a policy")],
)
def test_arguments_out_of_range(tmp_path, arguments, words):
    with pytest.raises(UsageError, match=words):
        CheckpointManager(tmp_path, {}, **arguments)


@pytest.mark.parametrize("step", [-1, 1.5, "7", None])
def test_steps_that_are_no_counts(tmp_path, step):
    with pytest.raises(UsageError, match="step="):
        CheckpointManager(tmp_path, {}).save(step)


def test_by_default_it_saves_every_ten_minutes(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    manager = CheckpointManager(tmp_path, {})
    saved = []
    for step in range(1, 2001):
        now[0] += 1.0
        if manager.step(step):
            saved.append(step)
    assert saved == pytest.approx([600, 1200, 1800], abs=3)


def test_a_quiet_step_costs_next_to_nothing(tmp_path):
    """The promise is well under 1 µs; 5 µs leaves room for a machine that is busy."""

    class Quiet:
        stirred = False

        def stop_now(self, step):
            return False

    for policy in (EverySteps(10**9), EverySeconds(10**6), AnyOf()):
        manager = CheckpointManager(tmp_path, {}, save=policy, monitor=Quiet())
        best = float("inf")
        for step in range(1, 100):
            manager.step(step)
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(10_000):
                manager.step(64)
            best = min(best, (time.perf_counter() - began) / 10_000)
        assert best < 5e-6


class StopsAt:
    """A monitor that was asked to stop, and agrees on a step."""

    def __init__(self, step, **attributes):
        self.at = step
        self.stirred = True
        self.__dict__.update(attributes)

    def stop_now(self, step):
        return step >= self.at


def test_a_stop_saves_and_raises(tmp_path, box):
    manager = CheckpointManager(tmp_path, {"box": box(1)}, save=AnyOf(), monitor=StopsAt(3))
    assert not manager.step(2)
    with pytest.raises(Preempted, match=f"after step 3 .* saved in {tmp_path}") as stop:
        manager.step(3)
    assert stop.value.code == ExitCode.PREEMPTED
    assert manager.all_steps() == [3]


def test_a_stop_saves_no_step_twice(tmp_path, box):
    manager = CheckpointManager(tmp_path, {"box": box(1)}, monitor=StopsAt(3))
    manager.save(3, blocking=True)
    with pytest.raises(Preempted):
        manager.step(3)
    assert len(list(tmp_path.glob("step-*"))) == 1


def test_a_monitor_may_name_the_exit_code(tmp_path):
    monitor = StopsAt(1, exit_code=ExitCode.INTERRUPTED)
    with pytest.raises(Preempted) as stop:
        CheckpointManager(tmp_path, {}, monitor=monitor).step(1)
    assert stop.value.code == ExitCode.INTERRUPTED


def test_a_stop_without_a_folder_says_that_nothing_is_saved():
    with pytest.raises(Preempted, match="nothing is saved"):
        CheckpointManager(None, {}, monitor=StopsAt(1)).step(1)


def test_ranks_save_what_is_shared_once_and_their_own_each(tmp_path, box, on_ranks, quick):
    def state(communicator, value):
        return {"shared": box(value), "own": PerRank(box(f"{value} of {communicator.rank}"))}

    def save(communicator):
        manager = CheckpointManager(
            tmp_path, state(communicator, "saved"), communicator=communicator, options=quick
        )
        manager.save(5, blocking=True)
        return manager.last_saved_step

    def restore(communicator):
        mine = state(communicator, None)
        manager = CheckpointManager(tmp_path, mine, communicator=communicator, options=quick)
        return manager.restore_latest(), mine["shared"].value, mine["own"].value.value

    assert on_ranks(3, save) == [5, 5, 5]
    assert len(list(tmp_path.glob("step-*/state/*"))) == 1
    assert len(list(tmp_path.glob("step-*/ranks/rank*.state.json"))) == 3
    assert on_ranks(3, restore) == [(5, "saved", f"saved of {rank}") for rank in range(3)]


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 3)])
def test_another_number_of_ranks(tmp_path, box, on_ranks, quick, caplog, before, after):
    def save(communicator):
        state = {"shared": box(1), "own": PerRank(box(communicator.rank))}
        CheckpointManager(tmp_path, state, communicator=communicator, options=quick).save(5)

    def restore(communicator):
        state = {"shared": box(), "own": PerRank(box("new"))}
        manager = CheckpointManager(tmp_path, state, communicator=communicator, options=quick)
        assert manager.restore_latest() == 5
        return state["shared"].value, state["own"].value.value

    on_ranks(before, save)
    kept = min(before, after)
    expected = [(1, rank) for rank in range(kept)] + [(1, "new")] * (after - kept)
    assert on_ranks(after, restore) == expected
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert f"saved by {before} rank(s) and restored by {after}" in warnings[0]
    assert "own" in warnings[0]


def test_ranks_that_do_not_share_the_path(tmp_path, box, on_ranks, quick):
    def rank(communicator):
        folder = tmp_path / f"node{communicator.rank}"
        CheckpointManager(folder, {"box": box(1)}, communicator=communicator, options=quick)

    for error in on_ranks(2, rank):
        assert isinstance(error, EnvironmentFaultError)
        assert "not shared: rank 1 does not see what rank 0 wrote" in str(error)


def test_ranks_that_save_different_steps(tmp_path, box, on_ranks, quick):
    def rank(communicator):
        manager = CheckpointManager(
            tmp_path, {"box": box(1)}, communicator=communicator, options=quick
        )
        manager.save(7 + communicator.rank, blocking=True)

    for error in on_ranks(2, rank):
        assert isinstance(error, UsageError)
        assert "different steps: rank 0 saves 7, and rank(s) 1 8" in str(error)
    assert CheckpointManager(tmp_path, {"box": box()}).restore_latest() is None


def test_a_rank_that_does_not_come_is_named(tmp_path, box, on_ranks, quick):
    from dataclasses import replace

    def rank(communicator):
        manager = CheckpointManager(
            tmp_path,
            {"box": box(1)},
            communicator=communicator,
            options=replace(quick, timeout=1.0),
        )
        if communicator.rank != 2:
            manager.save(1, blocking=True)

    results = on_ranks(3, rank)
    assert results[2] is None
    for error in results[:2]:
        assert isinstance(error, DeadlineError)
        assert "rank(s) 2 of 3" in str(error)


def test_the_clock_of_rank_0_decides_for_all(tmp_path, box, on_ranks, quick):
    def rank(communicator):
        seconds = 1e-9 if communicator.rank == 0 else 1e9
        manager = CheckpointManager(
            tmp_path,
            {"box": box(1)},
            save=EverySeconds(seconds),
            communicator=communicator,
            options=quick,
        )
        return [step for step in range(1, 6) if manager.step(step)]

    first, *others = on_ranks(3, rank)
    assert len(first) >= 3
    assert all(other == first for other in others)


def test_what_cannot_be_saved_raises_on_all_and_leaves_nothing(tmp_path, on_ranks, quick):
    def rank(communicator):
        state = {"table": (table := {"fine": 1}), "own": PerRank({})}
        manager = CheckpointManager(tmp_path, state, communicator=communicator, options=quick)
        manager.save(1, blocking=True)
        table["bad"] = object()
        try:
            manager.save(2, blocking=True)
        except UsageError as error:
            del table["bad"]
            manager.save(3, blocking=True)
            return str(error)

    for text in on_ranks(2, rank):
        assert "table.bad is a object" in text
    assert len(list(tmp_path.glob("step-*"))) == 2


def test_importing_loads_no_framework():
    code = (
        "import sys, trainkit.checkpoint; "
        "print([m for m in ('torch', 'numpy', 'safetensors', 'fsspec') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


WITHOUT_TORCH = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ImportError("torch is not installed")

sys.meta_path.insert(0, NotInstalled())
"""


def test_it_works_where_torch_cannot_be_imported(tmp_path):
    code = f"""
{WITHOUT_TORCH}
import numpy as np
from trainkit import Progress
from trainkit.checkpoint import CheckpointManager
state = lambda n: {{"weights": np.full(3, n), "progress": Progress(0, n)}}
CheckpointManager({str(tmp_path)!r}, state(5)).save(5)
CheckpointManager({str(tmp_path)!r}, back := state(0)).restore_latest()
assert back["weights"].tolist() == [5, 5, 5] and back["progress"].step == 5
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tensors_without_torch_ask_for_it(tmp_path):
    torch = pytest.importorskip("torch")
    CheckpointManager(tmp_path, {"table": {"x": torch.ones(1)}}).save(1)
    code = f"""
{WITHOUT_TORCH}
from trainkit.errors import DependencyError
from trainkit.checkpoint import CheckpointManager
try:
    CheckpointManager({str(tmp_path)!r}, {{"table": {{}}}}).restore_latest()
except DependencyError as error:
    assert "install" in str(error)
else:
    raise SystemExit("restored without torch")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_progress_is_the_usual_entry(tmp_path):
    CheckpointManager(tmp_path, {"progress": Progress(2, 30)}).save(30)
    CheckpointManager(tmp_path, {"progress": (back := Progress())}).restore_latest()
    assert back == Progress(2, 30)


def test_another_object_takes_the_place_of_an_entry(tmp_path, box):
    state = {"a": box(1), "b": box(2)}
    manager = CheckpointManager(tmp_path, state)
    manager.replace("a", other := box(10))
    assert state["a"] is other is manager.state["a"]
    with pytest.raises(TypeError):
        manager.state["a"] = box(3)
    manager.save(1, blocking=True)
    other.value = 0
    assert manager.restore_latest() == 1
    assert (other.value, state["b"].value) == (10, 2)
    with pytest.raises(
        UsageError, match=r"replace\('c', …\): the state has no such entry; it has a, b"
    ):
        manager.replace("c", box(1))
    with pytest.raises(UsageError, match="'a' is a int"):
        manager.replace("a", 1)
    manager.close()
