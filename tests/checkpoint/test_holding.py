"""Who may open a folder: one run at a time, its ranks together, and readers always."""

import logging
import os
from dataclasses import replace

import pytest

from trainkit.checkpoint import AnyOf, CheckpointManager, CheckpointOptions
from trainkit.checkpoint.save import holder as holder_module
from trainkit.checkpoint.save.generation import claim
from trainkit.checkpoint.save.holder import Holder
from trainkit.errors import EnvironmentFaultError, Preempted, UsageError
from trainkit.storage import LocalStorage

READ_ONLY = CheckpointOptions(read_only=True)


def files_below(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_reader_beside_a_run_writes_nothing(tmp_path, box, quick):
    run = CheckpointManager(tmp_path, {"box": (it := box(1))}, options=quick)
    for step in (1, 2):
        it.value = step
        run.save(step)
    (newest,) = tmp_path.glob("step-0000000002.*/state/box.json")
    newest.write_bytes(newest.read_bytes()[:-1] + b" ")
    before = files_below(tmp_path)
    reader = CheckpointManager(tmp_path, {"box": (back := box())}, options=READ_ONLY)
    assert reader.latest_step() == 2
    assert reader.restore_latest() == 1
    assert back.value == 1
    assert reader.restore(1) == 1
    assert not any(reader.step(step) for step in range(3, 9))
    reader.save_unsaved()
    with pytest.raises(UsageError, match="opened with read_only=True"):
        reader.save(9)
    reader.close()
    assert files_below(tmp_path) == before
    run.save(3)


def test_a_reader_that_is_to_stop_says_that_nothing_is_saved(tmp_path):
    class Stops:
        stirred = True

        def stop_now(self, step):
            return True

    reader = CheckpointManager(tmp_path, {}, save=AnyOf(), monitor=Stops(), options=READ_ONLY)
    with pytest.raises(Preempted, match=r"nothing is saved, since .* is only read"):
        reader.step(1)


def test_a_folder_that_is_closed_can_be_opened_by_another_run(tmp_path, quick, monkeypatch):
    CheckpointManager(tmp_path, {}, options=quick).close()
    monkeypatch.setattr(Holder, "is_this_process", lambda self: False)  # as from another process
    CheckpointManager(tmp_path, {}, options=quick).close()
    assert (tmp_path / ".generations" / "0000000002.released").exists()


def test_all_ranks_hear_of_a_run_that_is_alive(tmp_path, on_ranks, quick, monkeypatch):
    """The holder is this very process, as a process elsewhere would see it."""
    holder = CheckpointManager(tmp_path, {}, options=replace(quick, renewal=0.05))
    monkeypatch.setattr(Holder, "is_this_process", lambda self: False)
    monkeypatch.setattr("trainkit.checkpoint.save.lease.hold_of", lambda holder: None)

    def rank(communicator):
        options = replace(quick, patience=0.1, lease=600.0, renewal=0.05)
        CheckpointManager(tmp_path, {}, communicator=communicator, options=options)

    for error in on_ranks(3, rank):
        assert isinstance(error, EnvironmentFaultError)
        assert f"process {os.getpid()} on host" in str(error)
    holder.close()


def test_any_rank_may_know_the_last_holder_for_dead(tmp_path, on_ranks, quick, monkeypatch):
    """Rank 0 is on another host than before; the one where it was now has rank 2."""
    claim(LocalStorage(tmp_path), replace(Holder.here(silence=600.0), host="the first", boot="b"))
    ranks = {}

    def fate(self):
        import threading

        return "dead" if ranks[threading.current_thread()] == 2 else "unknown"

    monkeypatch.setattr(holder_module.Holder, "fate", fate)

    def rank(communicator):
        import threading

        ranks[threading.current_thread()] = communicator.rank
        options = replace(quick, lease=600.0)
        manager = CheckpointManager(tmp_path, {}, communicator=communicator, options=options)
        manager.close()
        return manager.url

    assert on_ranks(3, rank) == [str(tmp_path)] * 3


def test_ranks_that_do_not_share_the_path_leave_it_free(tmp_path, on_ranks, quick, caplog):
    caplog.set_level(logging.WARNING)

    def rank(communicator):
        folder = tmp_path / f"node{communicator.rank}"
        CheckpointManager(folder, {}, communicator=communicator, options=quick)

    assert all(isinstance(error, EnvironmentFaultError) for error in on_ranks(2, rank))
    assert (tmp_path / "node0" / ".generations" / "0000000001.released").exists()


@pytest.mark.parametrize("times", [{"lease": 20.0}, {"renewal": 0.0}, {"renewal": 40.0}])
def test_a_lease_is_at_least_two_renewals(times):
    with pytest.raises(UsageError, match="at least two renewals"):
        CheckpointOptions(**times)
