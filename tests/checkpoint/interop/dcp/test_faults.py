"""What goes wrong in a save fails it, and costs no older checkpoint; damage is found."""

import contextlib
import errno
import os
import random
import shutil
import threading

import pytest
import torch
import torch.distributed.checkpoint as dcp

from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.checkpoint.interop import TrainkitReader, TrainkitWriter, files
from trainkit.checkpoint.save.hold import release_all
from trainkit.errors import (
    CheckpointDamagedError,
    EnvironmentFaultError,
    InputMissingError,
    UsageError,
)
from trainkit.storage import LocalStorage

ONCE = CheckpointOptions(background=False, attempts=1, pause=0.0, visible_within=0.2)


class Killed(BaseException):
    """The process ends here, without any clean-up."""


class FailingStorage(LocalStorage):
    """Fails at the n-th operation that changes anything; a write is cut off in its middle."""

    def __init__(self, root, at, error):
        super().__init__(root)
        self.left, self.error = at, error
        self.lock = threading.Lock()

    def _tick(self):
        with self.lock:
            self.left -= 1
            return self.left == 0 or (self.left < 0 and isinstance(self.error, Killed))

    def create(self, path, data):
        if self._tick():
            raise self.error
        super().create(path, data)

    def write(self, path, parts):
        if self._tick():
            if isinstance(self.error, Killed):
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


@pytest.fixture(autouse=True)
def _several_files(monkeypatch):
    monkeypatch.setattr(files, "_SMALL", 100)


def state(value):
    return {**{f"w{i}": torch.full((50,), float(value)) for i in range(8)}, "n": value}


def save(root, value, writer=None):
    writer = writer or TrainkitWriter(root, options=ONCE, threads=3)
    dcp.save(state(value), checkpoint_id=str(value), storage_writer=writer)


def loaded(root, **options):
    """The value that a load gives, all of which is of one checkpoint."""
    back = state(0)
    dcp.load(back, storage_reader=TrainkitReader(root, **options))
    assert all((back[f"w{i}"] == back["n"]).all() for i in range(8))
    return back["n"]


def reason(caught):
    """The one error in what DCP raises."""
    ((error, _),) = caught.value.failures.values()
    return error


def operations(folder, monkeypatch):
    """How many operations a second save takes."""
    storage = FailingStorage(folder, -1, OSError())
    with monkeypatch.context() as patch:
        patch.setattr("trainkit.checkpoint.interop.dcp.writer.open_storage", lambda url: storage)
        save(folder, 1)
    return -1 - storage.left


@pytest.mark.parametrize("kind", ["killed", "full disk"])
def test_a_failure_at_every_operation(tmp_path, monkeypatch, kind):
    """The save raises, the older checkpoint stays as it is, and a later save works."""
    count = operations(tmp_path / "count", monkeypatch)
    assert count > 7  # the claim, three files of tensors, one of values, metadata, manifest
    committed = 0
    for at in range(1, count + 1):
        root = tmp_path / str(at)
        save(root, 1)
        error = Killed() if kind == "killed" else OSError(errno.ENOSPC, "no space left on device")
        storage = FailingStorage(root, at, error)
        with monkeypatch.context() as patch:
            patch.setattr(
                "trainkit.checkpoint.interop.dcp.writer.open_storage", lambda url, s=storage: s
            )
            with contextlib.suppress(dcp.CheckpointException):
                save(root, 2)
                committed += 1
        value = loaded(root)
        assert value == (2 if (root / f"step-{2:010d}.g02-0000/MANIFEST.json").exists() else 1)
        assert loaded(root, step=1) == 1
        save(root, 3)
        assert loaded(root) == 3
        release_all()  # of a writer that was killed, its lease goes whenever it is collected
        shutil.rmtree(root)
    assert committed <= 2, "an operation that failed was not told of"


def test_a_failed_save_leaves_nothing_on_a_full_disk(tmp_path, monkeypatch):
    storage = FailingStorage(tmp_path, 6, OSError(errno.ENOSPC, "no space left on device"))
    with monkeypatch.context() as patch:
        patch.setattr("trainkit.checkpoint.interop.dcp.writer.open_storage", lambda url: storage)
        with pytest.raises(dcp.CheckpointException) as caught:
            save(tmp_path, 1)
    assert reason(caught).errno == errno.ENOSPC
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_all_errors_of_threads_are_told(tmp_path, monkeypatch):
    """DCP's own writer loses the errors of all its threads but one."""

    plain = LocalStorage.write

    def write(self, path, parts):
        if "-values" not in path:
            raise OSError(errno.EIO, f"no luck with {path}")
        plain(self, path, parts)

    monkeypatch.setattr(LocalStorage, "write", write)
    with pytest.raises(dcp.CheckpointException) as caught:
        save(tmp_path, 1)
    assert "rank00000-" in str(reason(caught))
    assert len(reason(caught).__notes__) == 2


def test_errors_that_pass_are_tried_again(tmp_path, monkeypatch, caplog):
    storage = FailingStorage(tmp_path, 4, OSError(errno.EIO, "flaky"))
    options = CheckpointOptions(attempts=3, pause=0.0)
    with monkeypatch.context() as patch:
        patch.setattr("trainkit.checkpoint.interop.dcp.writer.open_storage", lambda url: storage)
        save(tmp_path, 1, TrainkitWriter(tmp_path, options=options))
    assert "flaky" in caplog.text
    assert "trying again in 0 s" in caplog.text
    assert loaded(tmp_path) == 1


def test_a_writer_goes_on_after_a_failure_and_takes_the_leftovers_away(tmp_path, monkeypatch):
    writer = TrainkitWriter(tmp_path, options=ONCE, threads=3)
    save(tmp_path, 1, writer)
    with monkeypatch.context() as patch:
        storage = FailingStorage(tmp_path, 5, Killed())
        patch.setattr("trainkit.checkpoint.interop.dcp.writer.open_storage", lambda url: storage)
        with pytest.raises(dcp.CheckpointException):
            save(tmp_path, 2, writer)
    assert (tmp_path / f"step-{2:010d}.g01-0001").exists()
    save(tmp_path, 3, writer)
    assert not (tmp_path / f"step-{2:010d}.g01-0001").exists()
    assert loaded(tmp_path) == 3
    assert loaded(tmp_path, step=1) == 1


def test_a_run_that_was_overtaken_saves_no_more(tmp_path):
    first = TrainkitWriter(tmp_path)
    save(tmp_path, 1, first)
    save(tmp_path, 2, TrainkitWriter(tmp_path))
    with pytest.raises(dcp.CheckpointException, match="another run saves to") as caught:
        save(tmp_path, 3, first)
    assert isinstance(reason(caught), EnvironmentFaultError)
    assert loaded(tmp_path) == 2


def test_two_saves_of_one_writer_at_the_same_time_are_refused(tmp_path):
    writer = TrainkitWriter(tmp_path, step=1)
    writer.set_up_storage_writer(True)
    plan = dcp.SavePlan([])
    other = threading.Thread(target=writer.set_up_storage_writer, args=(True,))
    other.start()
    other.join()
    with pytest.raises(UsageError, match="another save with this TrainkitWriter began"):
        writer.prepare_global_plan([plan])


def test_a_step_is_needed(tmp_path):
    with pytest.raises(dcp.CheckpointException, match="but as which step"):
        dcp.save(state(1), storage_writer=TrainkitWriter(tmp_path))


def test_a_folder_of_dcp_itself_is_refused(tmp_path):
    dcp.save(state(1), checkpoint_id=tmp_path / "step-1")
    with pytest.raises(dcp.CheckpointException, match="not a folder of trainkit checkpoints"):
        save(tmp_path / "step-1", 1)


@pytest.mark.parametrize("seed", range(3))
def test_every_damaged_byte_is_found(tmp_path, seed):
    save(tmp_path, 1)
    save(tmp_path, 2)
    rng = random.Random(seed)
    (folder,) = tmp_path.glob(f"step-{2:010d}.*")
    for path in sorted(folder.rglob("*.*")):
        whole = path.read_bytes()
        for _ in range(8):
            damaged = bytearray(whole)
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            with pytest.raises(dcp.CheckpointException) as caught:
                loaded(tmp_path)
            assert isinstance(reason(caught), CheckpointDamagedError)
            assert folder.name in str(reason(caught))
        path.write_bytes(whole[: rng.randrange(len(whole))])
        with pytest.raises(
            dcp.CheckpointException, match=r"damaged|MANIFEST|has \d+ bytes|cut off"
        ):
            loaded(tmp_path)
        path.write_bytes(whole)
    assert loaded(tmp_path) == 2


def test_a_file_that_is_missing_or_swapped(tmp_path):
    save(tmp_path, 2)
    (folder,) = tmp_path.glob("step-*")
    one, other = folder / "dcp/rank00000-0.safetensors", folder / "dcp/rank00000-1.safetensors"
    os.rename(one, tmp_path / "aside")
    with pytest.raises(dcp.CheckpointException, match=r"rank00000-0.safetensors is missing"):
        loaded(tmp_path)
    shutil.copy(other, one)
    with pytest.raises(dcp.CheckpointException, match=r"has \d+ bytes|do not match"):
        loaded(tmp_path)


def test_damage_says_what_else_is_there(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (manifest,) = tmp_path.glob(f"step-{2:010d}.*/MANIFEST.json")
    manifest.write_bytes(manifest.read_bytes()[:-9])
    with pytest.raises(dcp.CheckpointException, match="Committed steps there: 1"):
        loaded(tmp_path)


def test_what_was_never_committed_is_refused(tmp_path):
    with pytest.raises(dcp.CheckpointException, match="is empty, or there is no such folder"):
        loaded(tmp_path / "none")
    save(tmp_path, 1)
    save(tmp_path, 2)
    (manifest,) = tmp_path.glob(f"step-{2:010d}.*/MANIFEST.json")
    manifest.unlink()
    assert loaded(tmp_path) == 1
    with pytest.raises(dcp.CheckpointException) as caught:
        loaded(tmp_path, step=2)
    assert isinstance(reason(caught), InputMissingError)
    assert f"step-{2:010d}.g02-0000 was never committed. Committed steps there: 1" in str(
        reason(caught)
    )


def test_what_was_set_aside_is_passed_over(tmp_path):
    from trainkit.checkpoint.format import catalog

    save(tmp_path, 1)
    save(tmp_path, 2)
    storage = LocalStorage(tmp_path)
    catalog.quarantine(storage, catalog.committed(storage)[0], "found damaged")
    assert loaded(tmp_path) == 1
    assert loaded(tmp_path, step=2) == 2


def test_retention_of_a_manager_keeps_the_newest(tmp_path):
    for value in (1, 2, 3):
        save(tmp_path, value)
    manager = CheckpointManager(tmp_path, {"table": {}}, keep=2, options=ONCE)
    manager.save(4, blocking=True)
    manager.close()
    assert manager.all_steps() == [3, 4]
    assert loaded(tmp_path, step=3) == 3
