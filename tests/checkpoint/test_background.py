"""Saves beside training: a real process writes, is stopped and killed, and nothing is lost."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from trainkit.checkpoint import CheckpointManager, CheckpointOptions, EverySteps, root
from trainkit.checkpoint.save import division
from trainkit.checkpoint.save.process import WriterProcess
from trainkit.errors import RetryableError, UsageError
from trainkit.processes.table import descendants
from trainkit.state import PerRank
from trainkit.waiting import Deadline, wait_until

OPTIONS = CheckpointOptions(timeout=60.0, attempts=1, pause=0.01, visible_within=0.2)


def writers():
    """Pids of the processes that write for this one."""
    return [pid for pid in descendants(os.getpid()) if b"save.worker" in _command(pid)]


def _command(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def the_writer():
    (pid,) = writers()
    return pid


def state(value=0.0):
    return {"weights": np.full(300_000, float(value)), "table": {"step": value}}


def fill(it, value):
    it["weights"][:] = value
    it["table"]["step"] = value


def restored(root):
    back = state()
    step = CheckpointManager(root, back).restore_latest()
    assert (back["weights"] == (step or 0)).all()
    assert back["table"]["step"] == (step or 0)
    return step


@pytest.fixture
def run(tmp_path):
    """A state and its manager, which has saved step 1."""
    it = state(1)
    manager = CheckpointManager(tmp_path, it, options=OPTIONS)
    manager.save(1, blocking=True)
    yield it, manager
    manager.close()
    assert writers() == []


def test_what_is_saved_is_the_state_at_that_moment(run, tmp_path):
    it, manager = run
    pid = the_writer()
    os.kill(pid, signal.SIGSTOP)
    fill(it, 2)
    manager.save(2)
    fill(it, -1)
    assert manager.all_steps() == [1]
    assert manager.last_saved_step == 1
    os.kill(pid, signal.SIGCONT)
    manager.wait()
    assert manager.last_saved_step == 2
    assert restored(tmp_path) == 2


def test_a_writer_that_dies_is_started_again_and_loses_nothing(run, tmp_path, caplog):
    it, manager = run
    first = the_writer()
    os.kill(first, signal.SIGSTOP)
    fill(it, 2)
    manager.save(2)
    fill(it, -1)
    os.kill(first, signal.SIGKILL)
    manager.wait()
    assert restored(tmp_path) == 2
    assert "the process that writes checkpoints died (exit -9); it is started again" in caplog.text
    assert the_writer() != first


def test_a_writer_that_dies_between_saves_is_started_again(run, tmp_path):
    it, manager = run
    os.kill(the_writer(), signal.SIGKILL)
    fill(it, 2)
    manager.save(2, blocking=True)
    assert restored(tmp_path) == 2


def test_a_writer_that_dies_again_and_again_is_an_error_of_that_save_alone(run, tmp_path):  # B057
    it, manager = run
    os.kill(the_writer(), signal.SIGSTOP)
    manager.save(2)
    dead = set()

    def kill_each():
        try:
            manager.step(2)
        except RetryableError as error:
            return error
        for pid in set(writers()) - dead:
            os.kill(pid, signal.SIGKILL)
            dead.add(pid)
        return None

    error = wait_until(kill_each, what="the error", deadline=Deadline(60))
    assert "died 2 times (exit -9)" in str(error)
    assert len(dead) == 2
    fill(it, 3)
    manager.save(3, blocking=True)
    assert restored(tmp_path) == 3


def test_signals_that_stop_a_job_do_not_stop_its_writer(run, tmp_path):
    it, manager = run
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(the_writer(), number)
    pid = the_writer()
    fill(it, 2)
    manager.save(2, blocking=True)
    assert the_writer() == pid
    assert restored(tmp_path) == 2


def test_a_failure_surfaces_at_the_next_step(tmp_path):
    root = tmp_path / "run"
    manager = CheckpointManager(root, state(1), options=OPTIONS)
    manager.save(1, blocking=True)
    root.rename(tmp_path / "away")
    root.write_text("no folder any more")
    manager.save(2)

    def steps():
        try:
            manager.step(2)
        except OSError as error:
            return error
        return None

    error = wait_until(steps, what="the error", deadline=Deadline(60))
    assert "Not a directory" in str(error)
    assert str(root) in str(error)
    root.unlink()
    (tmp_path / "away").rename(root)
    manager.save(3, blocking=True)  # the error was told once, and is over
    assert manager.all_steps() == [1, 3]
    manager.close()


def test_steps_see_the_commit_without_waiting(run):
    _, manager = run
    manager.save(2)

    def steps():
        assert not manager.step(2)
        return manager.last_saved_step == 2

    wait_until(steps, what="the commit", deadline=Deadline(60))


@pytest.mark.parametrize("busy", ["wait", "skip"])
def test_a_save_that_is_due_while_another_is_under_way(tmp_path, busy, caplog):
    options = replace(OPTIONS, when_busy=busy)
    manager = CheckpointManager(tmp_path, state(0), save=EverySteps(1), options=options)
    manager.step(1)
    manager.wait()
    pid = the_writer()
    os.kill(pid, signal.SIGSTOP)
    assert manager.step(2)
    if busy == "skip":
        assert not manager.step(3)
        assert "a save is left out" in caplog.text
        os.kill(pid, signal.SIGCONT)
        manager.wait()
        assert manager.all_steps() == [1, 2]
    else:
        subprocess.Popen(["sh", "-c", f"sleep 0.2; kill -CONT {pid}"]).wait()
        assert manager.step(3)
        manager.wait()
        assert manager.all_steps() == [1, 2, 3]
    manager.close()


def test_where_a_copy_does_not_fit_training_waits(run, tmp_path, monkeypatch, caplog):
    it, manager = run
    monkeypatch.setattr("trainkit.checkpoint.save.writers.memory_left", lambda: 1_000_000)
    it["more"] = np.zeros(1_000_000)
    fill(it, 2)
    os.kill(the_writer(), signal.SIGSTOP)  # it is not asked
    manager.save(2)
    manager.wait()
    os.kill(the_writer(), signal.SIGCONT)
    assert "does not fit into the memory that is left (1 MiB)" in caplog.text
    assert manager.all_steps() == [1, 2]


SCRIPT = """
import sys
import numpy as np
from trainkit.checkpoint import CheckpointManager

if __name__ == "__main__":
    manager = CheckpointManager(sys.argv[1], {"weights": np.ones(3_000_000), "table": {"step": 1}})
    manager.save(1)
    print(open("/proc/thread-self/children").read(), flush=True)
    if sys.argv[2] == "wait for a kill":
        sys.stdin.read()
"""


def start(root, what):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(root), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_script_that_ends_after_save_has_saved(tmp_path):  # B059
    with start(tmp_path, "end") as script:
        out, err = script.communicate(timeout=120)
    assert script.returncode == 0, err
    back = {"weights": np.zeros(3_000_000), "table": {}}
    assert CheckpointManager(tmp_path, back).restore_latest() == 1
    assert back["weights"].all()
    assert not os.path.exists(f"/proc/{out.strip()}")


def test_a_writer_ends_with_the_process_that_it_writes_for(tmp_path):
    with start(tmp_path, "wait for a kill") as script:
        pid = script.stdout.readline().strip()
        wait_until(lambda: b"save.worker" in _command(pid), what="it", deadline=Deadline(60))
        script.kill()
    wait_until(lambda: b"save.worker" not in _command(pid), what="its end", deadline=Deadline(60))


def test_large_entries_are_divided_and_read_by_anybody(tmp_path, on_ranks, monkeypatch):
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    monkeypatch.setattr(division, "SPLIT_BYTES", 2000)

    def model():
        torch.manual_seed(5)
        return torch.nn.Sequential(*[torch.nn.Linear(30, 30) for _ in range(6)])

    models = [model() for _ in range(3)]  # the threads that are ranks share one generator

    def rank(communicator):
        it = {"model": models[communicator.rank], "own": PerRank({"rank": communicator.rank})}
        manager = CheckpointManager(tmp_path, it, communicator=communicator, options=OPTIONS)
        manager.save(1)
        manager.wait()
        manager.close()
        return manager.all_steps()

    assert on_ranks(3, rank) == [[1]] * 3
    (folder,) = tmp_path.glob("step-*")
    index = json.loads((folder / "model/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 3
    expected = {name: value.clone() for name, value in model().state_dict().items()}
    for name, file in index["weight_map"].items():
        assert torch.equal(safetensors.load_file(folder / "model" / file)[name], expected[name])
    back = model()
    torch.nn.init.zeros_(back[0].weight)
    assert CheckpointManager(tmp_path, {"model": back}).restore_latest() == 1
    assert all(torch.equal(value, expected[name]) for name, value in back.state_dict().items())


def test_ranks_that_hold_different_tensors_are_named(tmp_path, on_ranks, monkeypatch):
    monkeypatch.setattr(division, "SPLIT_BYTES", 2000)

    def rank(communicator):
        it = {"weights": np.zeros((2000, 3 if communicator.rank == 2 else 4))}
        manager = CheckpointManager(tmp_path, it, communicator=communicator, options=OPTIONS)
        manager.save(1)
        try:
            manager.close()
        except UsageError as error:
            return str(error)

    for text in on_ranks(3, rank):
        assert "ranks hold different tensors: those of rank(s) 2 are not those of rank 0" in text
    assert CheckpointManager(tmp_path, {}).all_steps() == []


@pytest.mark.parametrize("failing", [0, 1])
def test_what_fails_on_one_rank_is_told_at_its_next_step_and_raised_on_all(
    tmp_path, on_ranks, failing, caplog
):
    caplog.set_level(logging.WARNING)

    class Unsavable:
        broken = False

        def state_dict(self):
            return {"value": object() if self.broken else 1}

        def load_state_dict(self, state_dict):
            pass

    def rank(communicator):
        it = {"value": PerRank(Unsavable())}
        manager = CheckpointManager(tmp_path, it, communicator=communicator, options=OPTIONS)
        manager.save(1)
        it["value"].value.broken = communicator.rank == failing
        raised = []
        for action in (
            lambda: manager.save(2),
            manager.wait,
            lambda: manager.save(3),
            manager.close,
        ):
            try:
                action()
            except UsageError as error:
                raised.append(str(error))
                it["value"].value.broken = False
            else:
                raised.append(None)
        return raised, manager.all_steps()

    for number, (raised, steps) in enumerate(on_ranks(2, rank)):
        at_save, at_wait, *later = raised
        assert (at_save is not None) is (number == failing)
        assert f"rank {failing}.entries.value.value is a object" in at_wait
        assert ("failed: UsageError" in at_wait) is (number != failing)
        assert later == [None, None]
        assert steps == [1, 3]


def test_a_rank_that_leaves_by_an_error_waits_for_nobody(tmp_path, on_ranks):
    """And what it had to write is there, so that the others can still commit."""

    def rank(communicator):
        manager = CheckpointManager(
            tmp_path, {"value": {"a": 1}}, communicator=communicator, options=OPTIONS
        )
        manager.save(1)
        if communicator.rank == 1:
            manager.close(failed=True)
            return None
        manager.wait()
        manager.close(failed=True)
        return manager.all_steps()

    assert on_ranks(2, rank) == [[1], None]


@pytest.mark.parametrize("known", [True, False], ids=["after a save", "in the first"])
def test_a_failing_run_waits_a_few_saves_long_for_a_part_that_may_never_come(
    tmp_path, on_ranks, caplog, monkeypatch, known
):
    monkeypatch.setattr(root, "_AT_LEAST", 0.3)
    options = replace(OPTIONS, exit_timeout=2.0)

    def rank(communicator):
        manager = CheckpointManager(
            tmp_path, {"value": {"a": 1}}, communicator=communicator, options=options
        )
        manager.step(0)
        if known:
            manager.save(1)
            manager.wait()
        if communicator.rank == 0:
            manager.save(2)  # and rank 1 is lost before it does
        manager.close(failed=True)

    on_ranks(2, rank)
    (words,) = [record.message for record in caplog.records if "not done within" in record.message]
    assert ("within 2 s" in words) is not known


@pytest.mark.parametrize(
    "make",
    [
        "torch.arange(6.0).reshape(2, 3).t()",
        "torch.arange(12).reshape(3, 4)[:, ::2]",
        "torch.zeros(3, 4)[:, :0]",
        "torch.tensor(5.0, dtype=torch.bfloat16)",
        "torch.tensor([1 + 2j, 3 - 1j]).conj()",
        "torch.ones(3).expand(4, 3)",
        "torch.tensor([True, False])",
        "torch.nn.Parameter(torch.ones(2, 2))",
    ],
)
def test_tensors_of_every_kind_are_copied_as_their_shape_says(tmp_path, make):
    torch = pytest.importorskip("torch")
    value = eval(make, {"torch": torch})
    manager = CheckpointManager(tmp_path, {"it": (it := {"value": value})}, options=OPTIONS)
    for step in (1, 2):  # the second time into views that are there already
        manager.save(step, blocking=True)
    it["value"] = None
    manager.restore_latest()
    assert torch.equal(it["value"], value)
    assert it["value"].dtype == value.dtype
    manager.close()


@pytest.fixture
def urgent(tmp_path, monkeypatch):
    """A manager of four tensors that are copied one by one, and its tensors; what is put into
    ``told`` is called after the first of them."""
    torch = pytest.importorskip("torch")
    from trainkit.checkpoint.save import torch as copies

    monkeypatch.setattr(copies, "_TOLD_BYTES", 1)
    it = {f"t{i}": torch.zeros(3 << 20) for i in range(4)}
    manager = CheckpointManager(tmp_path, {"it": it}, options=OPTIONS)
    manager.save(1, blocking=True)
    told, tell = [], WriterProcess.tell_filled

    def note(self, filled):
        tell(self, filled)
        if told:
            told.pop()()

    monkeypatch.setattr(WriterProcess, "tell_filled", note)
    for number, value in enumerate(it.values(), start=1):
        value += number
    yield manager, it, told
    manager.close()
    assert writers() == []


def values(root):
    """The last element of each tensor of what is restored, which all of them are."""
    torch = pytest.importorskip("torch")
    back = {f"t{i}": torch.zeros(3 << 20) for i in range(4)}
    step = CheckpointManager(root, {"it": back}).restore_latest()
    for value in back.values():
        assert (value == value[-1]).all()
    return step, [int(value[-1]) for value in back.values()]


def test_what_is_waited_for_is_written_while_it_is_copied(urgent, tmp_path):
    manager, _, told = urgent

    def first_is_written():
        for file in tmp_path.glob("step-0000000002*/state/it.safetensors"):
            data = file.read_bytes()
            begin = 8 + int.from_bytes(data[:8], "little")
            return any(data[begin : begin + 100])
        return False  # it is not there yet

    told.append(lambda: wait_until(first_is_written, what="the write", deadline=Deadline(60)))
    manager.save(2, blocking=True)
    assert told == []
    assert values(tmp_path) == (2, [1, 2, 3, 4])


def test_a_writer_that_dies_while_it_waits_for_bytes(urgent, tmp_path, caplog):
    manager, _, told = urgent
    told.append(lambda: os.kill(the_writer(), signal.SIGKILL))
    manager.save(2, blocking=True)
    assert "died (exit -9); it is started again" in caplog.text
    assert values(tmp_path) == (2, [1, 2, 3, 4])


def test_a_copy_that_fails_is_an_error_of_that_save_alone(urgent, tmp_path):
    manager, it, told = urgent

    def fail():
        raise MemoryError("no more of it")

    told.append(fail)
    with pytest.raises(MemoryError, match="no more of it"):
        manager.save(2, blocking=True)
    assert writers() == []
    assert values(tmp_path) == (1, [0, 0, 0, 0])
    it["t0"] += 1
    manager.save(3, blocking=True)
    assert values(tmp_path) == (3, [2, 2, 3, 4])
    assert [*tmp_path.glob("step-0000000002*")] == []


def test_the_time_of_a_save_is_counted_from_the_end_of_the_copy(urgent):
    manager, _, told = urgent
    told.append(lambda: time.sleep(2))
    began = time.monotonic()
    manager.save(2, blocking=True)
    took = time.monotonic() - began
    assert 0 < manager._saver._writer.seconds < took - 1.9


@pytest.mark.parametrize("where", ["copy", "start"])
def test_a_save_that_was_interrupted_is_not_taken_for_one(urgent, tmp_path, monkeypatch, where):
    manager, _, told = urgent

    def interrupt(*_):
        raise KeyboardInterrupt

    if where == "copy":
        told.append(interrupt)
    else:
        start = WriterProcess.start
        monkeypatch.setattr(WriterProcess, "start", lambda self: (start(self), interrupt()))
    with pytest.raises(KeyboardInterrupt):
        manager.save(2, blocking=True)
    monkeypatch.undo()
    assert manager.last_saved_step == 1
    with pytest.raises(RetryableError, match="saving step 2 was interrupted"):
        manager.wait()
    assert values(tmp_path) == (1, [0, 0, 0, 0])
    manager.save(3, blocking=True)
    assert values(tmp_path) == (3, [1, 2, 3, 4])


def test_a_state_that_grows_and_shrinks(tmp_path):
    torch = pytest.importorskip("torch")
    it = {"value": torch.ones(10)}
    manager = CheckpointManager(tmp_path, {"it": it}, options=OPTIONS)
    for step, size in enumerate([10, 100_000, 7, 2_000_000, 3]):
        it["value"] = torch.full((size,), float(step))
        manager.save(step, blocking=True)
        manager.restore(step)
        assert it["value"].shape == (size,)
        assert (it["value"] == step).all()
    manager.close()
