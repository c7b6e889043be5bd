"""Storage that fails: the error is everybody's, older checkpoints stay, a later save works."""

import errno
import os
import resource
import shutil
import subprocess
import threading
from dataclasses import replace

import numpy as np
import pytest

from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.checkpoint.save.settling import Settling
from trainkit.errors import EnvironmentFaultError
from trainkit.storage import LocalStorage


class Killed(BaseException):
    """The process ends here, without any clean-up."""


class FailingStorage(LocalStorage):
    """Fails at the n-th operation that changes anything; a write is cut off in its middle."""

    reopenable = False  # it fails in this process alone

    def __init__(self, root, at, error, *, torn=True):
        super().__init__(root)
        self.left, self.error, self.torn = at, error, torn

    def _tick(self):
        self.left -= 1
        # The dead do nothing any more, while an error comes once.
        return self.left == 0 or (self.left < 0 and isinstance(self.error, Killed))

    def create(self, path, data):
        if self._tick():
            raise self.error
        super().create(path, data)

    def write(self, path, parts):
        if self._tick():
            if self.torn and self.left == 0:
                super().write(path, [b"".join(parts)[:50]])
            raise self.error
        super().write(path, parts)

    def make_folder(self, path=""):
        if self._tick():
            raise self.error
        super().make_folder(path)

    def delete(self, path):
        if self._tick():
            raise self.error
        super().delete(path)


def state(value):
    return {"weights": np.full(100, value), "table": {"value": value}}


def restored(root):
    back = state(0)
    step = CheckpointManager(root, back).restore_latest()
    assert (back["weights"] == (step or 0)).all()
    assert back["table"]["value"] == (step or 0)
    return step


def save_with(storage, monkeypatch, step, **options):
    """Open and save over ``storage``."""
    with monkeypatch.context() as patch:
        patch.setattr("trainkit.checkpoint.manager.open_storage", lambda url: storage)
        manager = CheckpointManager(storage.url, state(step), **options)
        manager.save(step, blocking=True)
        return manager


# The thread that keeps the lease dies with its process.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("links", [True, False])
def test_death_at_every_operation(tmp_path, monkeypatch, links):
    """The newest committed step is restored, whatever the operation that was the last."""
    if not links:

        def refuse(*_):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    committed_at = []
    for at in range(1, 100):
        root = tmp_path / str(at)
        CheckpointManager(root, state(1), keep=1).save(1)
        storage = FailingStorage(root, at, Killed())
        try:
            save_with(storage, monkeypatch, 2, keep=1)
        except Killed:
            step = restored(root)
            assert step in (1, 2)
            if step == 2:
                committed_at.append(at)
        else:
            break
        later = CheckpointManager(root, state(3), keep=1)
        later.save(3, blocking=True)
        later.close()  # the frames of the one that died hold it in a cycle
        assert restored(root) == 3
        assert len(list(root.glob("step-*"))) == 1  # nothing of the dead save is left
    assert at > 12
    # Those that died after the commit, while the old checkpoint was being removed.
    assert committed_at == list(range(committed_at[0], at))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
def test_an_error_at_every_operation(tmp_path, monkeypatch, number):
    """The save fails by that error, or succeeds; a checkpoint is there at any time."""
    options, found = CheckpointOptions(attempts=1, background=False), set()
    for at in range(3, 100):  # the first two operations open the root
        root = tmp_path / str(at)
        CheckpointManager(root, state(1)).save(1)
        storage = FailingStorage(root, at, OSError(number, os.strerror(number), "x"))
        try:
            manager = save_with(storage, monkeypatch, 2, options=options)
        except OSError as error:
            found.add(error.errno)
            assert restored(root) == 1
        else:
            assert storage.left > 0
            assert manager.last_saved_step == 2
            break
    assert at > 8
    assert found == {number}


def test_an_error_that_passes_is_tried_again(tmp_path, monkeypatch, caplog):  # B053
    options = CheckpointOptions(attempts=3, pause=0.01)
    storage = FailingStorage(tmp_path, 5, OSError(errno.EIO, "Input/output error"))
    assert save_with(storage, monkeypatch, 2, options=options).last_saved_step == 2
    assert "saving step 2 failed ([Errno 5] Input/output error); trying again" in caplog.text
    assert restored(tmp_path) == 2
    assert len(list(tmp_path.glob("step-*"))) == 1


def test_after_an_error_the_same_manager_saves_again(tmp_path, monkeypatch, quick):
    storage = LocalStorage(tmp_path)
    manager = save_with(storage, monkeypatch, 1, options=quick)
    write = LocalStorage.write

    def full(self, path, parts):
        raise OSError(errno.ENOSPC, "No space left on device", path)

    monkeypatch.setattr(LocalStorage, "write", full)
    with pytest.raises(OSError, match="No space left"):
        manager.save(2, blocking=True)
    assert manager.last_saved_step == 1
    monkeypatch.setattr(LocalStorage, "write", write)
    manager.save(2, blocking=True)
    assert manager.all_steps() == [1, 2]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_one_rank_that_cannot_write_fails_the_save_of_all(
    tmp_path, box, on_ranks, quick, monkeypatch, failing
):
    write = LocalStorage.write

    def full(self, path, parts):
        if getattr(self, "full", False):
            raise OSError(errno.ENOSPC, "No space left on device", path)
        write(self, path, parts)

    monkeypatch.setattr(LocalStorage, "write", full)

    def rank(communicator):
        manager = CheckpointManager(
            tmp_path, {"box": box(1)}, communicator=communicator, options=quick
        )
        manager.save(1, blocking=True)
        manager._root.storage.full = communicator.rank == failing
        try:
            manager.save(2, blocking=True)
        except OSError as error:
            manager._root.storage.full = False
            manager.save(3, blocking=True)
            return error.errno, str(error), manager.all_steps()

    for number, (code, text, steps) in enumerate(on_ranks(3, rank)):
        assert code == errno.ENOSPC
        assert (f"rank {failing} failed" in text) is (number != failing)
        assert steps == [1, 3]
    assert len(list(tmp_path.glob("step-*"))) == 2


def test_an_error_after_a_rank_was_seen_to_be_done_is_no_error_of_a_save_that_is_committed(
    tmp_path, box, on_ranks, quick, monkeypatch, caplog
):
    """Rank 1's last flush fails, of a part that rank 0 has read already: all say the same."""
    create, own_end, told = LocalStorage.create, Settling.own_end, threading.Event()

    def late(self, path, data):
        if path.endswith("MANIFEST.json"):
            assert told.wait(60)
        create(self, path, data)
        if path.endswith("ranks/rank00001.json"):
            raise OSError(errno.EIO, "Input/output error", path)

    def ended(self, flight, failure):
        own_end(self, flight, failure)
        if failure is not None:
            told.set()

    monkeypatch.setattr(LocalStorage, "create", late)
    monkeypatch.setattr(Settling, "own_end", ended)

    def rank(communicator):
        manager = CheckpointManager(
            tmp_path, {"box": box(1)}, communicator=communicator, options=quick
        )
        manager.save(1)
        manager.close()
        return manager.last_saved_step

    assert on_ranks(2, rank) == [1, 1]
    assert "rank 1: OSError: " in caplog.text


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk(tmp_path, quick, background):
    if os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small tmpfs needs root")
    root = tmp_path / "small"
    root.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(root)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting is not permitted here")
    try:
        data = {"weights": np.zeros(200_000)}  # 1.6 MB: one fits, two do not
        options = replace(quick, background=background)
        manager = CheckpointManager(root / "run", data, options=options)
        manager.save(1, blocking=True)
        with pytest.raises(OSError, match="No space left") as caught:
            manager.save(2, blocking=True)
        assert caught.value.errno == errno.ENOSPC
        assert manager.all_steps() == [1]
        assert len(list((root / "run").glob("step-*"))) == 1  # what was written is given back
        data["weights"] = np.zeros(10)
        manager.save(3, blocking=True)
        small = CheckpointManager(root / "run", data, options=options)
        assert small.restore_latest() == 3
        small.save(4, blocking=True)
        assert small.all_steps() == [1, 3, 4]
    finally:
        subprocess.run(["umount", str(root)], check=True)


def test_a_file_that_may_not_grow(tmp_path, quick):
    data = {"weights": np.zeros(500_000)}
    manager = CheckpointManager(tmp_path, data, options=quick)
    manager.save(1, blocking=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            manager.save(2, blocking=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    manager.save(3, blocking=True)
    assert manager.all_steps() == [1, 3]


def test_a_run_that_was_overtaken_may_not_save(tmp_path):
    old = CheckpointManager(tmp_path, state(1))
    old.save(1, blocking=True)
    new = CheckpointManager(tmp_path, state(2))
    old.save(2, blocking=True)  # the other one has only read so far
    new.save(3, blocking=True)
    with pytest.raises(EnvironmentFaultError, match=r"another run saves to .*step-0000000003\.g02"):
        old.save(4, blocking=True)
    assert new.all_steps() == [1, 2, 3]


def test_a_zombie_cannot_commit_into_what_its_successor_removed(tmp_path, monkeypatch):
    """The old process is in the middle of a save while the new one saves and cleans up."""
    old = CheckpointManager(tmp_path, state(1), options=CheckpointOptions(background=False))
    old.save(1, blocking=True)
    create = LocalStorage.create

    def overtaken(self, path, data):
        if path.endswith("MANIFEST.json"):
            monkeypatch.setattr(LocalStorage, "create", create)
            CheckpointManager(tmp_path, state(3)).save(3, blocking=True)
        create(self, path, data)

    monkeypatch.setattr(LocalStorage, "create", overtaken)
    with pytest.raises(FileNotFoundError):
        old.save(2, blocking=True)
    assert restored(tmp_path) == 3
    assert CheckpointManager(tmp_path, state(0)).all_steps() == [1, 3]
