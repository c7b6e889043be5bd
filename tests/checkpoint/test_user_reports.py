"""What users of other tools reported of checkpoints: each report done again, and what is right.

B046, B048 and B051 stand in ``tests/data/torch/test_resume.py`` too, by samples alone.
"""

import ctypes
import errno
import functools
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tests.checkpoint.test_background import OPTIONS, fill, restored, state, the_writer, writers
from trainkit.checkpoint import CheckpointManager, CheckpointOptions, KeepBest
from trainkit.checkpoint.format.catalog import step_folders
from trainkit.checkpoint.format.pins import pin
from trainkit.errors import EnvironmentFaultError, RetryableError
from trainkit.storage import LocalStorage
from trainkit.testing import requires_module, requires_root
from trainkit.waiting import Deadline, wait_until

PATIENT = replace(OPTIONS, attempts=16)
"""Tries again within twice the time that a fault lasts, up to ten minutes."""


def script(text, *arguments, **options):
    """Start a program as users do, with pipes."""
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finished(text, *arguments, **options):
    """Run such a program to its end; its streams."""
    with script(text, *arguments, **options) as process:
        out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out, err


def warnings_of(caplog):
    found = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    caplog.clear()
    return found


def whole_folders(root):
    """Step folders with a manifest, by what stands in it alone: plain JSON, sizes of files."""
    found = []
    for manifest in root.glob("step-*/MANIFEST.json"):
        for path, record in json.loads(manifest.read_text())["files"].items():
            assert (manifest.parent / path).stat().st_size == record["size"], path
        found.append(manifest.parent.name)
    return sorted(found)


KILLED_200_TIMES = """
import json, os, random, select, signal, sys, time
import numpy as np
from trainkit.checkpoint import CheckpointManager, CheckpointOptions

ROUNDS = 200

def train(root, pipe):
    state = {"weights": np.zeros(100_000), "table": {"step": 0}}
    options = CheckpointOptions(background=False)
    manager = CheckpointManager(root, state, keep=2, options=options)
    step = manager.restore_latest() or 0
    assert (state["weights"] == step).all() and state["table"]["step"] == step
    os.write(pipe, f"{step}\\n".encode())
    while True:
        step += 1
        state["weights"][:] = step
        state["table"]["step"] = step
        manager.save(step, blocking=True)
        os.write(pipe, f"{step}\\n".encode())

def start(root, log):
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, os.fdopen(read, "r")
    os.close(read)
    os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY, 0o600), 2)
    try:
        train(root, write)
    finally:
        os._exit(1)

root, log = sys.argv[1:]
rng, duration, last, rounds = random.Random(40), 0.02, 0, []
for number in range(ROUNDS):
    pid, lines = start(root, log)
    begun = lines.readline()
    restored = int(begun) if begun else None
    acknowledged = [restored] if begun else []
    began = time.monotonic()
    for _ in range(rng.randrange(1, 3)):
        acknowledged += [int(line) for line in [lines.readline()] if line]
    duration = (time.monotonic() - began) / max(1, len(acknowledged) - 1)
    select.select([lines], [], [], rng.uniform(0, 1.2 * duration))
    os.kill(pid, 9)
    status = os.waitpid(pid, 0)[1]
    acknowledged += [int(line) for line in lines if line.endswith("\\n")]
    lines.close()
    with open(log) as file:
        said = file.read().splitlines()
    os.unlink(log)
    rounds.append({"restored": restored, "last": acknowledged[-1], "status": status, "said": said})
print(json.dumps(rounds))
"""


def test_a_run_that_is_killed_in_a_save_resumes_from_the_newest_complete_one(tmp_path):
    """B040: huggingface/transformers#35782, #35525.

    The time to the kill is random, up to somewhat more than a save takes.
    """
    out, _ = finished(KILLED_200_TIMES, tmp_path / "run", tmp_path / "log")
    rounds = json.loads(out)
    assert len(rounds) == 200
    last = 0
    for number, one in enumerate(rounds):
        assert one["status"] == signal.SIGKILL, one
        assert one["restored"] in (last, last + 1), (number, last, one)
        # What was cut off is told once, in one line; nothing else is worth a word.
        assert len(one["said"]) <= 1, one
        assert all("skipped, since their save was cut off: step-" in line for line in one["said"])
        last = one["last"]
    assert any(one["said"] for one in rounds), "no kill hit a save"
    assert not (tmp_path / "run" / ".quarantine").exists()


def test_a_newest_folder_that_lacks_a_file_is_passed_over_with_one_warning(tmp_path, caplog):
    """B040: huggingface/transformers#35782, #35525: the folder that they found."""
    it = state()
    with_two = CheckpointManager(tmp_path, it, options=OPTIONS)
    for step in (1, 2):
        fill(it, step)
        with_two.save(step, blocking=True)
    with_two.close()
    (lost,) = tmp_path.glob("step-0000000002.*/state/table.json")
    lost.unlink()
    warnings_of(caplog)
    assert restored(tmp_path) == 1
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"{lost.parent.parent.name} is passed over from now on: ")
    assert "state/table.json is missing" in warning
    assert restored(tmp_path) == 1
    (warning,) = warnings_of(caplog)
    assert warning.startswith("skipped, since they were found damaged before: step-0000000002.")


SAVES_200_MB = """
import sys
import numpy as np
from trainkit.checkpoint import CheckpointManager, CheckpointOptions

state = {"weights": np.ones(25_000_000)}
options = CheckpointOptions(background=sys.argv[2] == "background")
manager = CheckpointManager(sys.argv[1], state, options=options)
manager.save(1, blocking=True)
state["weights"][:] = 2
print("saved 1", flush=True)
manager.save(2, blocking=True)
print("saved 2", flush=True)
"""


@pytest.mark.parametrize("mode", ["foreground", "background"])
def test_a_kill_in_a_large_save_leaves_nothing_incomplete_under_a_final_name(tmp_path, mode):
    """B042: Lightning-AI/pytorch-lightning#688.

    What makes a checkpoint is its manifest; and at no moment is it there before all else is.
    """
    with script(SAVES_200_MB, tmp_path, mode) as trainer:
        assert trainer.stdout.readline() == "saved 1\n"
        committed = whole_folders(tmp_path)
        assert len(committed) == 1

        def being_written():
            assert len(whole_folders(tmp_path)) == 1, "the save was over before the kill"
            found = list(tmp_path.glob("step-0000000002.*/state/weights.safetensors"))
            return any(file.stat().st_blocks * 512 > 20_000_000 for file in found)

        wait_until(being_written, what="20 of 200 MB", deadline=Deadline(120))
        trainer.kill()
        assert trainer.communicate()[0] == ""
    back = {"weights": np.zeros(25_000_000)}
    reader = CheckpointManager(tmp_path, back, options=CheckpointOptions(read_only=True))
    assert whole_folders(tmp_path) == committed
    assert reader.restore_latest() == 1
    assert (back["weights"] == 1).all()


FINISHES_WITH_THE_BEST = """
import sys
from trainkit.checkpoint import CheckpointManager, KeepBest

state = {"table": {"step": 0}}
manager = CheckpointManager(sys.argv[1], state, keep=KeepBest("loss", count=1))
step = manager.restore_latest()
assert step == state["table"]["step"] == 4, step
for step, loss in ((5, 0.5), (6, 0.4)):
    state["table"]["step"] = step
    manager.save(step, {"loss": loss})
manager.close()
"""


@pytest.mark.parametrize("best", ["moved too", "lost", "pinned and lost"])
def test_a_run_whose_folder_was_moved_ends_without_a_crash(tmp_path, best):
    """B044: huggingface/transformers#48315.

    A checkpoint holds no path, so the best is found wherever the folder is. A warning is due
    where somebody pinned a checkpoint that is not there any more; then alone something names it.
    """
    before, after = tmp_path / "before", tmp_path / "after"
    manager = CheckpointManager(before, {"table": {"step": 4}}, keep=KeepBest("loss"))
    for step, loss in ((1, 0.9), (2, 0.1), (3, 0.8), (4, 0.7)):
        manager.save(step, {"loss": loss}, blocking=True)
    assert manager.all_steps() == [2, 4]
    manager.close()
    storage = LocalStorage(before)
    folder = step_folders(storage)[-1]
    assert folder.step == 2
    if best == "pinned and lost":
        pin(storage, folder)
    if best != "moved too":
        storage.delete(folder.name)
    before.rename(after)
    _, err = finished(FINISHES_WITH_THE_BEST, after)
    gone = f"pinned, and not there any more: {folder.name}"
    assert [line for line in err.splitlines() if line] == [gone] * (best == "pinned and lost")
    steps = CheckpointManager(after, {"table": {}}).all_steps()
    assert steps == ([2, 6] if best == "moved too" else [6])
    assert not before.exists()


def training_rank(folder, length, batch_size, kill_after, after_epoch):
    """Train two epochs and save after each step, or each epoch; the process dies after a save."""
    from torch.utils.data import DataLoader

    from trainkit.data.torch import ShardedDataLoader
    from trainkit.state import Progress

    data = DataLoader(range(length), batch_size, shuffle=True)
    loader, progress = ShardedDataLoader(data, shard=(0, 1), seed=3), Progress()
    manager = CheckpointManager(f"{folder}/run", {"loader": loader, "progress": progress})
    manager.restore_latest()

    def save():
        manager.save(progress.step, blocking=True)
        if progress.step == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    with open(f"{folder}/samples", "a") as samples:
        for progress.epoch in range(progress.epoch, 2):  # noqa: B020
            for batch in loader:
                samples.writelines(f"{number}\n" for number in batch.tolist())
                samples.flush()
                progress.step += 1
                if not after_epoch:
                    save()
            if after_epoch:
                save()
    manager.close()


@pytest.fixture
def lives(ranks, tmp_path):
    """The samples of a run that is killed after some steps, each time after a save."""
    count = iter(range(100))

    def run(length, batch_size, *kills, after_epoch=False):
        folder = tmp_path / f"run{next(count)}"
        folder.mkdir()
        for kill in (*kills, None):
            arguments = (str(folder), length, batch_size, kill)
            (result,) = ranks(training_rank, *arguments, after_epoch, check=False)
            assert result.exit_code == (-signal.SIGKILL if kill else 0), result
        return [int(line) for line in (folder / "samples").read_text().split()]

    return run


@requires_module("torch")
@pytest.mark.world_size(1)
@pytest.mark.parametrize("after_epoch", [True, False], ids=["end of epoch", "40 %"])
def test_no_sample_is_repeated_after_a_kill(lives, after_epoch):
    """B046: Lightning-AI/pytorch-lightning#850, #1182."""
    unbroken = lives(64, 4)
    assert sorted(unbroken) == sorted([*range(64)] * 2)
    assert lives(64, 4, 16 if after_epoch else 6, after_epoch=after_epoch) == unbroken


@requires_module("torch")
@pytest.mark.world_size(1)
def test_a_shuffled_loader_keeps_its_order_over_a_resume(lives):
    """B048: huggingface/accelerate#2016: 64 samples, stopped at 20."""
    unbroken = lives(64, 4)
    assert unbroken[:64] != unbroken[64:], "the epochs are shuffled alike"
    assert lives(64, 4, 5) == unbroken


@requires_module("torch")
@pytest.mark.world_size(1)
def test_a_second_interruption_within_an_epoch_counts_from_its_start(lives):
    """B051: KempnerInstitute/KempnerForge#57: resumed at 30, and again at 40."""
    assert lives(100, 1, 30, 40) == lives(100, 1)


def _retries(text):
    return [line for line in text.splitlines() if "trying again" in line]


def test_a_write_error_that_passes_ends_no_run(tmp_path, capfd):
    """B053: rwth-i6/returnn#1829.

    The kernel refuses the writer's files above a limit (EFBIG), as a quota does; then it is
    lifted, as a grace period or a person does.
    """
    it = state(1)
    manager = CheckpointManager(tmp_path, it, options=PATIENT)
    manager.save(1, blocking=True)
    usual = resource.prlimit(the_writer(), resource.RLIMIT_FSIZE, (100_000, -1))
    fill(it, 2)
    manager.save(2)
    said = ""

    def steps():  # training goes on meanwhile
        nonlocal said
        assert not manager.step(2)
        said += capfd.readouterr().err
        return len(_retries(said)) >= 2

    wait_until(steps, what="two attempts that failed", deadline=Deadline(60))
    assert manager.all_steps() == [1]
    resource.prlimit(the_writer(), resource.RLIMIT_FSIZE, usual)
    fill(it, -1)
    manager.wait()
    assert restored(tmp_path) == 2
    first, second = _retries(said)[:2]
    assert "saving step 2 failed ([Errno 27] File too large" in first
    assert first.endswith("(attempt 2 of 16)")
    assert second.endswith("(attempt 3 of 16)")
    manager.close()


class FailsOnce(LocalStorage):
    """Storage whose n-th operation fails, of whatever kind it is; asked again it does not."""

    reopenable = False  # it fails in this process alone
    left = 0

    def _answer(self, name, *arguments):
        self.left -= 1
        if self.left == 0:
            raise OSError(errno.EIO, f"{name} failed", arguments[0] if arguments else "")
        return getattr(super(), name)(*arguments)


for _name in ("create", "write", "read", "names", "tree", "size", "make_folder", "delete"):
    setattr(FailsOnce, _name, functools.partialmethod(FailsOnce._answer, _name))


def test_no_operation_of_a_save_needs_to_succeed_at_once(tmp_path, monkeypatch, caplog):
    """B053: rwth-i6/returnn#1829: one EIO anywhere, at a look as well as at a write."""
    storage = FailsOnce(tmp_path)
    monkeypatch.setattr("trainkit.checkpoint.manager.open_storage", lambda url: storage)
    options = CheckpointOptions(background=False, pause=0.001)
    state = {"table": (table := {"step": 0})}
    manager = CheckpointManager(storage.url, state, options=options)
    failed = set()
    for step in range(1, 200):
        storage.left = step
        table["step"] = step
        manager.save(step, blocking=True)
        assert manager.last_saved_step == step
        if storage.left > 0:
            break
        (warning,) = warnings_of(caplog)
        failed.add(re.search(r"(\w+) failed:", warning)[1])
        assert manager.restore(step) == table["step"] == step
    assert step > 12
    assert failed >= {"create", "write", "read", "names", "size", "make_folder"}
    manager.close()


ON_A_FULL_DISK = """
import sys, threading
from pathlib import Path
import numpy as np
from trainkit.checkpoint import CheckpointManager, CheckpointOptions

root, ballast = Path(sys.argv[1], "run"), Path(sys.argv[1], "ballast")
options = CheckpointOptions(background=sys.argv[2] == "background", attempts=16, pause=0.01)
state = {"weights": np.ones(100_000)}
manager = CheckpointManager(root, state, keep=1, options=options)
manager.save(1, blocking=True)
ballast.write_bytes(bytes(900_000))  # of 2 MB, of which one save takes 0.8


def make_room():
    sys.stdin.readline()
    ballast.unlink()


threading.Thread(target=make_room).start()
state["weights"][:] = 2
manager.save(2)
state["weights"][:] = -1
manager.wait()
assert not ballast.exists(), "there was room all along"
for step in (2, 3):
    assert manager.restore_latest() == step
    assert (state["weights"] == step).all()
    state["weights"][:] = 3
    manager.save(3, blocking=True)
manager.close()
"""


@requires_root()
@pytest.mark.parametrize("mode", ["foreground", "background"])
def test_a_disk_that_is_full_for_a_moment_ends_no_run(tmp_path, mode):
    """B053: rwth-i6/returnn#1829, with a file system of 2 MB that is really full."""
    mount = 'mount -t tmpfs -o size=2000k tmpfs "$0" && exec "$1" -c "$2" "$0" "$3"'
    inside = ["sh", "-c", mount, str(tmp_path), sys.executable, ON_A_FULL_DISK, mode]
    with subprocess.Popen(
        ["unshare", "-m", *inside],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        said = process.stderr.readline()
        if "trying again" in said:
            process.stdin.write("there is room now\n")
        said += process.communicate(timeout=240)[1]
    if said.startswith(("unshare: unshare failed", "mount:")):
        pytest.skip(f"mounting is not permitted here: {said.strip()}")
    assert process.returncode == 0, said
    assert "saving step 2 failed ([Errno 28] No space left on device" in said


def saving_rank(folder):
    """Save again and again into one folder, and create objects that all want to create."""
    from tests.checkpoint.test_ranks import communicator_here, leave
    from trainkit.state import PerRank

    communicator = communicator_here()
    rank = communicator.rank
    state = {"weights": np.zeros(1000), "own": PerRank({"rank": rank})}
    manager = CheckpointManager(f"{folder}/run", state, communicator=communicator, keep=2)
    for step in range(1, 21):
        state["weights"][:] = step
        manager.save(step, blocking=True)
    manager.close()
    communicator.barrier()  # or rank 0 may still remove what is old
    steps = manager.all_steps()
    storage, won = LocalStorage(folder), 0
    storage.make_folder("objects")
    for number in range(200):
        communicator.barrier()
        try:
            storage.create(f"objects/{number}", bytes([rank]))
            won += 1
        except FileExistsError:
            assert storage.read(f"objects/{number}") != bytes([rank])
    leave(communicator, num_left=2)
    return steps, won


@pytest.mark.world_size(2)
def test_two_ranks_on_a_node_do_not_take_each_others_files_away(ranks, tmp_path):
    """B055: kubeflow/training-operator, elastic/imagenet.py @078ec30.

    A script of that shape under ``trainkit launch``: tests/launch/test_user_reports.py.
    """
    first, second = (result.value for result in ranks(saving_rank, str(tmp_path)))
    assert first[0] == second[0] == [19, 20]
    assert first[1] + second[1] == 200
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if path.name.endswith(".tmp")]
    own = [path for path in files if path.match("run/step-*/ranks/rank0000?.json")]
    assert len(own) == 2 * 2, files


def test_a_save_whose_writer_died_is_neither_the_latest_nor_in_the_way(tmp_path):
    """B057: AI-Hypercomputer/maxtext#5260."""
    it = state(1)
    manager = CheckpointManager(tmp_path, it, options=OPTIONS)
    manager.save(1, blocking=True)
    os.kill(the_writer(), signal.SIGSTOP)
    fill(it, 5)
    manager.save(5)  # the part that blocks
    dead = set()

    def killed():
        try:
            manager.step(5)
        except RetryableError as error:
            return error
        for pid in set(writers()) - dead:
            os.kill(pid, signal.SIGKILL)
            dead.add(pid)
        return None

    wait_until(killed, what="the error of the save", deadline=Deadline(60))
    assert manager.latest_step() == manager.last_saved_step == 1
    assert manager.restore_latest() == 1
    assert (it["weights"] == 1).all()
    for step in (3, 5):  # below what failed, and the same again
        fill(it, step)
        manager.save(step, blocking=True)
        assert manager.latest_step() == step
    manager.close()
    assert restored(tmp_path) == 5


RETURNS_AFTER_SAVE = """
import os, signal, sys
import numpy as np
from trainkit.checkpoint import CheckpointManager, CheckpointOptions

state = {"weights": np.zeros(300_000), "table": {"step": 0}}
manager = CheckpointManager(sys.argv[1], state, options=CheckpointOptions(exit_timeout=1))
manager.restore_latest()
step = int(sys.argv[2])
state["weights"][:] = step
state["table"]["step"] = step
if sys.argv[3] == "stopped":
    manager.step(0)  # which starts the writer
    (writer,) = open("/proc/thread-self/children").read().split()
    os.kill(int(writer), signal.SIGSTOP)
    print(writer, flush=True)
manager.save(step)
"""


def test_the_end_of_a_script_waits_for_the_commit_and_says_so(tmp_path):
    """B059: google/orbax#647."""
    patient = RETURNS_AFTER_SAVE.replace("exit_timeout=1", "exit_timeout=120")
    with script(patient, tmp_path, 1, "stopped") as ending:
        writer = int(ending.stdout.readline())
        said = ending.stderr.readline()
        assert said == "waiting until step 1 is saved, for 120 s at most\n"
        assert whole_folders(tmp_path) == []
        os.kill(writer, signal.SIGCONT)
        assert ending.communicate(timeout=240) == ("", "")
    assert ending.returncode == 0
    assert restored(tmp_path) == 1


def test_the_end_of_a_script_does_not_wait_for_ever(tmp_path):
    """B059: google/orbax#647: a commit that does not come; restore takes the one before."""
    finished(RETURNS_AFTER_SAVE.replace("exit_timeout=1", "exit_timeout=120"), tmp_path, 1, "")
    out, err = finished(RETURNS_AFTER_SAVE, tmp_path, 2, "stopped")
    waiting, failed = err.splitlines()
    assert waiting == "waiting until step 2 is saved, for 1 s at most"
    assert failed == "step 2 was not saved: not done within 1 s"
    assert not os.path.exists(f"/proc/{out.strip()}")
    assert restored(tmp_path) == 1


def test_a_relative_folder_is_found_from_everywhere(tmp_path, monkeypatch):
    """B060: mosaicml/composer#1037."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    after.mkdir()
    monkeypatch.chdir(before)
    it = state(1)
    manager = CheckpointManager("runs/a", it, options=OPTIONS)
    manager.save(1, blocking=True)
    monkeypatch.chdir(after)
    for step in (2, 3):  # by a writer that was there, and by one that is started here
        fill(it, step)
        manager.save(step, blocking=True)
        os.kill(the_writer(), signal.SIGKILL)
    assert manager.restore_latest() == 3
    manager.close()
    assert list(after.iterdir()) == []
    assert restored("../before/runs/a") == 3
    monkeypatch.chdir(before / "runs")
    assert restored("a") == 3
    for file in (path for path in before.rglob("*") if path.is_file()):
        assert b"runs/a" not in file.read_bytes(), file


def _drawn():
    import random

    import torch

    return [random.random(), np.random.random(), float(torch.rand(()))]


def unpickling_forbidden(folder):
    """Restore in a process in which nothing can be looked up by a pickle; what is drawn next."""
    import pickle

    def refuse(event, arguments):
        if event == "pickle.find_class":
            raise PermissionError(f"a pickle asks for {arguments}")

    sys.addaudithook(refuse)
    control = pickle.dumps(np.random.get_state())
    with pytest.raises(PermissionError, match="a pickle asks for"):
        pickle.loads(control)
    table = {"generator": None, "array": None, "scalar": None}
    assert CheckpointManager(folder, {"table": table}).restore_latest() == 1
    generator = np.random.default_rng(0)
    generator.bit_generator.state = table["generator"]
    drawn = [*_drawn(), float(generator.random())]
    return drawn, table["array"].tolist(), repr(table["scalar"])


@requires_module("torch")
@pytest.mark.world_size(1)
def test_states_of_random_generators_load_without_pickle(ranks, tmp_path):
    """B062: huggingface/transformers#40500, #34631."""
    import random

    import torch

    random.seed(62)
    np.random.seed(62)
    torch.manual_seed(62)
    generator = np.random.default_rng(62)
    generator.random()
    table = {
        "generator": generator.bit_generator.state,
        "array": np.arange(3, dtype=np.uint32),
        "scalar": np.float32(1.5),
    }
    manager = CheckpointManager(tmp_path, {"table": table})
    manager.save(1)
    manager.close()
    expected = [*_drawn(), float(generator.random())]
    (result,) = ranks(unpickling_forbidden, str(tmp_path))
    assert result.value == (expected, [0, 1, 2], repr(np.float32(1.5)))


_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 1 << 18


def node_rank(folder):
    """A rank whose node has a volume of its own at the path."""
    from tests.checkpoint.test_ranks import communicator_here, leave

    libc = ctypes.CDLL(None, use_errno=True)
    apart = (
        libc.unshare(_CLONE_NEWNS)
        or libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        or libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=4m")
    )
    if apart != 0:
        return f"not permitted: {os.strerror(ctypes.get_errno())}"
    communicator = communicator_here()
    options = CheckpointOptions(visible_within=0.5)
    try:
        CheckpointManager(folder, {"a": {}}, communicator=communicator, options=options)
    except EnvironmentFaultError as error:
        return str(error)
    finally:
        leave(communicator, num_left=2)
    return "opened"


@requires_root()
@pytest.mark.world_size(2)
def test_a_path_that_nodes_do_not_share_is_refused_at_the_start(ranks, tmp_path):
    """B064: pytorch/pytorch#99976: two mount namespaces, and two volumes at one path."""
    folder = tmp_path / "run"
    folder.mkdir()
    results = [result.value for result in ranks(node_rank, str(folder))]
    if any(text.startswith("not permitted") for text in results):
        pytest.skip(results[0])
    for text in results:
        assert "the checkpoint path is not shared: rank 1 does not see what rank 0 wrote" in text
        assert f"{folder}/.generations/" in text
        assert "Mount one ReadWriteMany volume at this path in all pods" in text
    assert list(folder.iterdir()) == []
