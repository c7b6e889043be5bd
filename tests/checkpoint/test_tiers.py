"""The local tier: what a save reaches first, and what is left of it after a kill."""

import contextlib
import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoint.test_background import writers
from trainkit.checkpoint import CheckpointManager, CheckpointOptions, EverySteps
from trainkit.checkpoint.tiers import open_tier
from trainkit.coordination import Communicator
from trainkit.errors import EnvironmentFaultError, Preempted, UsageError
from trainkit.state import PerRank
from trainkit.storage import LocalStorage, open_storage
from trainkit.waiting import Deadline, wait_until

OPTIONS = CheckpointOptions(timeout=60.0, attempts=1, pause=0.01, visible_within=0.2)
FOREGROUND = replace(OPTIONS, background=False)
LOCAL_ONLY = 1_000_000
"""As ``upload_every``: of a test's saves only the first goes to the root."""


def state(value=0.0):
    return {"weights": np.full(50_000, float(value)), "table": {"step": value}}


def fill(it, value):
    it["weights"][:] = value
    it["table"]["step"] = value


def steps(folder):
    """Steps with a manifest below a folder, at any depth."""
    return sorted(int(p.parent.name[5:15]) for p in Path(folder).rglob("MANIFEST.json"))


def tier_of(path):
    """The folder of the one run in a tier."""
    (run,) = (entry for entry in Path(path).iterdir() if entry.name.startswith("run-"))
    return run


def newest(folder):
    return max(Path(folder).glob("step-*"), key=lambda path: path.name.partition(".")[2])


def damage(folder):
    """Flip a bit of each tensor file below a folder."""
    for file in Path(folder).rglob("*.safetensors"):
        with open(file, "r+b") as opened:
            opened.seek(-5, os.SEEK_END)
            byte = opened.read(1)
            opened.seek(-1, os.SEEK_CUR)
            opened.write(bytes([byte[0] ^ 1]))


@pytest.fixture
def places(tmp_path):
    """The root and the path of the tier."""
    return tmp_path / "root", tmp_path / "near"


@pytest.fixture(params=[OPTIONS, FOREGROUND], ids=["background", "foreground"])
def manager(places, request):
    it = state()
    made = CheckpointManager(places[0], it, local_tier=places[1], options=request.param)
    made.it = it
    yield made
    made.close()


def test_a_save_is_in_both(manager, places):
    fill(manager.it, 3)
    manager.save(3, blocking=True)
    assert steps(places[0]) == steps(places[1]) == [3]
    assert manager.last_saved_step == manager.last_local_step == 3
    assert (tier_of(places[1]) / "root").read_text() == str(places[0])


def test_the_tier_keeps_what_was_whole_until_the_next_one_is(manager, places):
    for step in (1, 2, 3):
        manager.save(step, blocking=True)
    assert steps(places[0]) == [1, 2, 3]
    assert steps(places[1]) == [2, 3]


def test_a_run_that_ends_well_leaves_nothing_in_the_tier(places):
    with contextlib.closing(
        CheckpointManager(places[0], state(), local_tier=places[1], options=OPTIONS)
    ) as manager:
        manager.save(1)
    assert steps(places[0]) == [1]
    assert steps(places[1]) == []


def test_the_copy_in_the_tier_is_read(manager, places, caplog):
    fill(manager.it, 5)
    manager.save(5, blocking=True)
    damage(places[0])  # nobody reads it
    fill(manager.it, 0)
    with caplog.at_level(logging.INFO):
        assert manager.restore_latest() == 5
    assert (manager.it["weights"] == 5).all()
    assert f"restored step 5 from {tier_of(places[1])}" in caplog.text


def test_of_a_damaged_copy_the_root_has_a_whole_one(manager, places, caplog):
    fill(manager.it, 5)
    manager.save(5, blocking=True)
    damage(places[1])
    fill(manager.it, 0)
    assert manager.restore_latest() == 5
    assert (manager.it["weights"] == 5).all()
    assert steps(places[1]) == []
    assert "do not match their checksum" in caplog.text
    assert not (places[0] / ".quarantine").exists()


def test_a_certain_step_comes_from_where_it_is_whole(manager, places):
    for step in (4, 5):
        fill(manager.it, step)
        manager.save(step, blocking=True)
    damage(places[1])
    for step in (5, 4):
        assert manager.restore(step) == step
        assert (manager.it["weights"] == step).all()


def test_every_third_save_is_uploaded(places):
    options = replace(OPTIONS, upload_every=3)
    manager = CheckpointManager(places[0], state(), keep=9, local_tier=places[1], options=options)
    for step in range(1, 8):
        manager.save(step, blocking=True)
    assert steps(places[0]) == [1, 4, 7]
    assert steps(places[1]) == [6, 7]
    assert manager.all_steps() == [1, 4, 6, 7]
    manager.save(8, blocking=True)
    assert (manager.last_saved_step, manager.last_local_step) == (7, 8)
    assert manager.latest_step() == 8
    manager.close()
    assert steps(places[0]) == [1, 4, 7, 8]  # the last one of a run
    assert steps(places[1]) == []


def test_the_end_of_a_run_is_uploaded(places):
    options = replace(OPTIONS, upload_every=LOCAL_ONLY)
    manager = CheckpointManager(places[0], state(), local_tier=places[1], options=options)
    for step in (1, 2):
        manager.save(step)
        manager.step(step)
    manager.save_unsaved()
    manager.close()
    assert steps(places[0]) == [1, 2]


class Monitor:
    last_step = None
    stirred = False

    def stop_now(self, step):
        return self.stirred


def test_a_stop_is_uploaded(places):
    options, monitor = replace(OPTIONS, upload_every=LOCAL_ONLY), Monitor()
    manager = CheckpointManager(
        places[0], state(), local_tier=places[1], options=options, monitor=monitor
    )
    manager.save(1)
    manager.save(2)
    monitor.stirred = True
    with pytest.raises(Preempted):
        manager.step(2)
    manager.close()
    assert steps(places[0]) == [1, 2]


KILLED = """
import os, signal, sys
import numpy as np
from tests.checkpoint.test_background import writers
from trainkit.checkpoint import CheckpointManager, CheckpointOptions, EverySteps
root, near, upload_every, obstacle = sys.argv[1:]
it = {"weights": np.zeros(50_000), "table": {"step": 0}}
options = CheckpointOptions(upload_every=int(upload_every), pause=600.0)
manager = CheckpointManager(root, it, local_tier=near, options=options)
for step in (1, 2, 3):
    it["weights"][:] = it["table"]["step"] = step
    if step == 3 and obstacle:
        open(os.path.join(root, obstacle), "w").close()
    manager.save(step, {"loss": 1 / step}, blocking=True)
    print(step, flush=True)
"""


def saving(places, upload_every, obstacle=""):
    """A process that saves three times; ``obstacle`` is in the way of its third upload."""
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, *map(str, places), str(upload_every), obstacle],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.fixture
def only_near(places):
    """Step 3 is in the tier alone."""
    process = saving(places, LOCAL_ONLY)
    while process.stdout.readline().strip() != b"3":
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    process.stdout.close()
    return places


def test_after_a_kill_the_tier_is_restored_and_then_uploaded(only_near):
    places = only_near
    assert steps(places[0]) == [1]

    it = state()
    manager = CheckpointManager(places[0], it, local_tier=places[1], options=OPTIONS)
    assert manager.restore_latest() == 3
    assert (it["weights"] == 3).all()
    fill(it, -1)
    manager.close()
    assert steps(places[0]) == [1, 3]
    back = state()
    alone = CheckpointManager(places[0], back, options=OPTIONS)
    assert alone.restore_latest() == 3
    assert (back["weights"] == 3).all()
    (manifest,) = places[0].glob("step-0000000003*/MANIFEST.json")
    assert '"loss": 0.33' in manifest.read_text()
    alone.close()


def test_a_kill_during_the_upload_loses_nothing(places):
    root, _ = places
    # As a store is that is away: there will be attempts without an end.
    process = saving(places, 1, "step-0000000003.g01-0002")
    wait_until(
        lambda: places[1].exists() and 3 in steps(places[1]),
        what="step 3 in the tier",
        deadline=Deadline(60.0),
    )
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    process.stdout.close()
    assert steps(root) == [1, 2]
    (root / "step-0000000003.g01-0002").unlink()

    it = state()
    with contextlib.closing(
        CheckpointManager(root, it, local_tier=places[1], options=OPTIONS)
    ) as manager:
        assert manager.restore_latest() == 3
        assert (it["weights"] == 3).all()
    assert steps(root) == [1, 2, 3]


def test_without_its_tier_a_run_goes_on_from_the_root(places):
    process = saving(places, 2)
    assert process.wait(60) == 0
    process.stdout.close()
    shutil.rmtree(places[1])  # the pod came back on another node
    it = state()
    manager = CheckpointManager(places[0], it, local_tier=places[1], options=OPTIONS)
    assert manager.restore_latest() == 3
    manager.close()


def test_a_tier_that_fails_is_no_error_of_a_save(manager, places, caplog):
    manager.save(1, blocking=True)
    # In the way of the next save; permissions do not stop root.
    (tier_of(places[1]) / "step-0000000002.g01-0001").write_text("")
    fill(manager.it, 2)
    manager.save(2, blocking=True)
    assert manager.last_saved_step == 2
    assert manager.last_local_step == 1
    fill(manager.it, 0)
    assert manager.restore_latest() == 2
    assert (manager.it["weights"] == 2).all()


def test_a_save_that_only_the_tier_was_to_have_goes_to_the_root_next_time(places, caplog):
    options = replace(OPTIONS, upload_every=LOCAL_ONLY)
    manager = CheckpointManager(places[0], state(), local_tier=places[1], options=options)
    manager.save(1, blocking=True)
    (tier_of(places[1]) / "step-0000000002.g01-0001").write_text("")
    manager.save(2, blocking=True)
    assert "step 2 is not in the local tier, since rank 0 failed" in caplog.text
    assert steps(places[0]) == steps(places[1]) == [1]
    manager.save(3, blocking=True)
    manager.save(4, blocking=True)
    assert steps(places[0]) == [1, 3]
    manager.close()


def test_a_tier_in_the_way_is_one_message(tmp_path):
    with pytest.raises(UsageError, match="is the folder of checkpoints itself"):
        CheckpointManager(tmp_path, state(), local_tier=tmp_path, options=OPTIONS)
    with pytest.raises(UsageError, match="expected a folder on a disk of this node"):
        CheckpointManager(tmp_path, state(), local_tier="memory://x", options=OPTIONS)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file; expected a folder"):
        CheckpointManager(tmp_path, state(), local_tier=tmp_path / "file", options=OPTIONS)
    # The folder was left to others each time.
    CheckpointManager(tmp_path, state(), options=replace(OPTIONS, patience=0.1)).close()


def on_nodes(on_ranks, places, nodes, work, **options):
    """Ranks that share the root, and each ``nodes`` th of them a tier."""
    root, near = places

    def rank(communicator):
        it = {**state(), "own": PerRank({"rank": -1})}
        manager = CheckpointManager(
            root,
            it,
            communicator=communicator,
            local_tier=near / f"node{communicator.rank * nodes // communicator.world_size}",
            options=replace(FOREGROUND, **options),
        )
        try:
            return work(manager, it, communicator.rank)
        finally:
            manager._root.hold.release()  # as a kill does: nothing else is given back

    results = on_ranks(4, rank)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def save_three(manager, it, rank):
    for step in (1, 2, 3):
        fill(it, step)
        it["own"].value["rank"] = rank
        manager.save(step, {"loss": 1 / step}, blocking=True)
    return manager.last_saved_step, manager.last_local_step


def restore(manager, it, rank):
    step = manager.restore_latest()
    assert (it["weights"] == step).all()
    assert it["own"].value["rank"] == rank
    manager.wait()
    return step


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_ranks_on_several_nodes(on_ranks, places, nodes):
    uploaded = on_nodes(on_ranks, places, nodes, save_three, upload_every=LOCAL_ONLY)
    assert uploaded == [(1, 3)] * 4
    assert steps(places[0]) == [1]
    assert on_nodes(on_ranks, places, nodes, restore) == [3] * 4
    assert steps(places[0]) == [1, 3]
    assert '"loss": 0.33' in (newest(places[0]) / "MANIFEST.json").read_text()


def test_a_node_that_is_gone_takes_its_steps_along(on_ranks, places):
    on_nodes(on_ranks, places, 2, save_three, upload_every=LOCAL_ONLY)
    shutil.rmtree(places[1] / "node1")
    assert on_nodes(on_ranks, places, 2, restore) == [1] * 4


def test_damage_on_one_node_lets_all_take_an_older_step(on_ranks, places, caplog):
    on_nodes(on_ranks, places, 2, save_three, upload_every=LOCAL_ONLY)
    (own,) = (places[1] / "node0").glob("run-*/step-0000000003*")
    damage(own)
    assert on_nodes(on_ranks, places, 2, restore) == [2] * 4
    assert "step 3 on the nodes is passed over" in caplog.text


def test_a_tier_that_fails_on_one_node(on_ranks, places, caplog):
    def work(manager, it, rank):
        for step in (1, 2, 3, 4):
            fill(it, step)
            it["own"].value["rank"] = rank
            if step == 2 and rank == 3:
                tier = Path(manager._root.tier.folder)
                (tier / "step-0000000002.g01-0001").write_text("")
            manager.save(step, blocking=True)

    on_nodes(on_ranks, places, 4, work, upload_every=LOCAL_ONLY)
    assert "step 2 is not in the local tier, since rank 3 failed" in caplog.text
    assert steps(places[0]) == [1, 3]
    assert on_nodes(on_ranks, places, 4, restore) == [4] * 4


def test_what_the_root_has_newer_is_not_undone(on_ranks, places):
    on_nodes(on_ranks, places, 2, save_three, upload_every=LOCAL_ONLY)

    def elsewhere(communicator):
        it = {**state(7), "own": PerRank({"rank": communicator.rank})}
        manager = CheckpointManager(places[0], it, communicator=communicator, options=FOREGROUND)
        manager.save(7, blocking=True)
        manager.close()

    on_ranks(4, elsewhere)
    assert on_nodes(on_ranks, places, 2, restore) == [7] * 4


def test_whether_ranks_share_a_tier_is_seen(on_ranks, tmp_path):
    root = open_storage(tmp_path / "root")
    root.make_folder()

    def rank(communicator):
        tier = open_tier(tmp_path / "near", root, communicator, 1, timeout=30.0)
        apart = open_tier(tmp_path / f"n{communicator.rank}", root, communicator, 1, timeout=30.0)
        return tier.shared, apart.shared

    assert on_ranks(2, rank) == [(True, False)] * 2
    assert open_tier(None, root, Communicator.solo(), 1, timeout=1.0) is None
    assert not [name for name in os.listdir(tier_of(tmp_path / "near")) if "seen" in name]


def test_another_folder_at_the_same_place_has_another_tier(places):
    """A volume that was wiped, or another one at the same path: what is in the tier is not its."""
    root, near = places
    for life in range(3):
        it = state(500)
        manager = CheckpointManager(root, it, local_tier=near, options=OPTIONS)
        assert manager.restore_latest() == (500 if life else None)
        manager.save(500, blocking=True)
        manager._root.leave()  # as a kill does: the tier is not emptied
    shutil.rmtree(root)
    it = state()
    with contextlib.closing(
        CheckpointManager(root, it, local_tier=near, options=OPTIONS)
    ) as manager:
        assert manager.restore_latest() is None
        manager.save(7, blocking=True)
    it = state()
    with contextlib.closing(
        CheckpointManager(root, it, local_tier=near, options=OPTIONS)
    ) as manager:
        assert manager.restore_latest() == 7


def test_a_run_that_was_overtaken_does_no_harm_in_the_tier(places):
    root, near = places
    options = replace(FOREGROUND, upload_every=LOCAL_ONLY)
    old = CheckpointManager(root, state(1), local_tier=near, options=options)
    old.save(1)
    old._root.hold.release()  # taken for dead
    new = CheckpointManager(root, state(2), local_tier=near, options=options)
    new.save(2)
    new.save(3)
    kept = steps(near)
    assert kept[-1] == 3
    with pytest.raises(EnvironmentFaultError, match="another run saves to"):
        old.save(9)
    assert steps(near) == kept
    new.close()
    assert steps(root) == [1, 2, 3]


def test_ranks_agree_about_what_only_the_tier_has(on_ranks, places):
    """Ranks other than 0 hear of the end of their own writing after rank 0's word."""

    def rank(communicator):
        manager = CheckpointManager(
            places[0],
            {"weights": np.zeros(1000)},
            save=EverySteps(1),
            communicator=communicator,
            local_tier=places[1],
            options=replace(OPTIONS, upload_every=LOCAL_ONLY),
        )
        for step in range(1, 6):
            manager.save(step, blocking=True)
            assert not manager.step(step)  # it is saved
        found = manager.last_saved_step, manager.last_local_step
        manager.close()
        return found

    assert on_ranks(3, rank) == [(1, 5)] * 3


def test_restarts_do_not_fill_the_tier(places):
    for life in range(4):
        manager = CheckpointManager(places[0], state(life), local_tier=places[1], options=OPTIONS)
        manager.save(life, blocking=True)
        manager._root.leave()
        assert len(steps(places[1])) <= 2
    assert steps(places[1]) == [2, 3]


def test_a_full_tier_is_none(places, caplog, monkeypatch):
    def full(self, path=""):
        raise OSError(errno.ENOSPC, "No space left on device", path)

    root = open_storage(places[0])
    root.make_folder()
    monkeypatch.setattr(LocalStorage, "make_folder", full)
    assert open_tier(places[1], root, Communicator.solo(), 1, timeout=1.0) is None
    assert "there is no local tier, since rank 0 failed: OSError: No space left" in caplog.text


def test_the_last_save_is_uploaded_without_a_step(places):
    options = replace(OPTIONS, upload_every=LOCAL_ONLY)
    with contextlib.closing(
        CheckpointManager(places[0], state(), local_tier=places[1], options=options)
    ) as manager:
        for step in (1, 2, 3):
            manager.save(step)
    assert steps(places[0]) == [1, 3]
    assert steps(places[1]) == []


def test_a_step_that_only_the_tier_has_is_not_taken_for_uploaded(places):
    process = saving(places, LOCAL_ONLY)
    assert process.wait(60) == 0
    process.stdout.close()
    it = state()
    manager = CheckpointManager(places[0], it, local_tier=places[1], options=OPTIONS)
    assert manager.restore(3) == 3
    assert manager.last_saved_step is None or 3 in steps(places[0])
    manager.step(3)
    manager.save_unsaved()
    manager.close()
    assert 3 in steps(places[0])


def test_ranks_that_come_back_in_another_order(on_ranks, places):
    on_nodes(on_ranks, places, 4, save_three, upload_every=LOCAL_ONLY)
    near = places[1]
    for one, other in ((0, 3), (1, 2)):
        (near / f"node{one}").rename(near / "x")
        (near / f"node{other}").rename(near / f"node{one}")
        (near / "x").rename(near / f"node{other}")
    assert on_nodes(on_ranks, places, 4, restore) == [3] * 4


def test_ranks_of_two_nodes_come_back_as_one_alone(on_ranks, places):
    on_nodes(on_ranks, places, 2, save_three, upload_every=LOCAL_ONLY)
    for run in (places[1] / "node1").glob("run-*/step-*"):
        (into,) = (places[1] / "node0").glob(f"run-*/{run.name}")
        shutil.copytree(run, into, dirs_exist_ok=True)
    it = {**state(), "own": PerRank({"rank": -1})}
    manager = CheckpointManager(places[0], it, local_tier=places[1] / "node0", options=FOREGROUND)
    assert manager.restore_latest() == 3
    assert (it["weights"] == 3).all()
    manager.close()


def test_ranks_with_other_tensors_are_told_where_nobody_sees_the_other(on_ranks, places):
    def rank(communicator):
        size = (1 << 25) + communicator.rank  # large enough to be divided
        manager = CheckpointManager(
            places[0],
            {"weights": np.zeros(size, np.int64)},
            communicator=communicator,
            local_tier=places[1] / f"node{communicator.rank}",
            options=replace(FOREGROUND, upload_every=LOCAL_ONLY),
        )
        manager._saver.name_next(0)  # the first save goes to the root
        try:
            manager.save(1, blocking=True)
        except UsageError as error:
            return str(error)
        finally:
            manager._root.leave()

    for message in on_ranks(2, rank):
        assert "ranks hold different tensors: those of rank(s) 1" in message


def test_a_writer_that_dies_after_the_tier_has_it(places):
    """Another process takes the work up; the tier's copy is neither refused nor lost."""
    it = state(1)
    manager = CheckpointManager(places[0], it, local_tier=places[1], options=OPTIONS)
    manager.save(1, blocking=True)
    obstacle = places[0] / "step-0000000002.g01-0001"
    obstacle.write_text("")
    (writer,) = writers()
    fill(it, 2)
    os.kill(writer, signal.SIGSTOP)
    manager.save(2)
    os.kill(writer, signal.SIGKILL)
    obstacle.unlink()
    manager.wait()
    assert (manager.last_saved_step, manager.last_local_step) == (2, 2)
    manager.close()


def in_the_way(manager, step, attempt):
    """Make the tier fail for one attempt to save; permissions do not stop root."""
    name = f"step-{step:010d}.g{manager._root.hold.generation:02d}-{attempt:04x}"
    (Path(manager._root.tier.folder) / name).write_text("")


def test_an_older_step_of_the_tier_is_not_put_over_a_newer_one(places):
    options = replace(FOREGROUND, upload_every=3)
    it = state()
    manager = CheckpointManager(places[0], it, keep=1, local_tier=places[1], options=options)
    for step in (1, 2, 3):
        fill(it, step)
        manager.save(step)
    in_the_way(manager, 4, 3)
    fill(it, 4)
    manager.save(4)  # the root's turn
    assert (manager.last_saved_step, manager.last_local_step) == (4, 3)
    manager.close()
    assert steps(places[0]) == [4]
    back = state()
    with contextlib.closing(CheckpointManager(places[0], back, options=OPTIONS)) as reader:
        assert reader.restore_latest() == 4


@pytest.mark.parametrize("nodes", [1, 3])
def test_ranks_close_together_though_one_tier_has_failed(on_ranks, places, nodes):
    def rank(communicator):
        it = {"weights": np.zeros(1000)}
        manager = CheckpointManager(
            places[0],
            it,
            communicator=communicator,
            local_tier=places[1] / f"node{communicator.rank * nodes // 3}",
            options=replace(FOREGROUND, upload_every=2, timeout=20.0),
        )
        for step in (1, 2):
            manager.save(step)
        if communicator.rank == 1 and nodes == 3:
            in_the_way(manager, 3, 2)
        manager.save(3)
        manager.close()
        return manager.last_saved_step

    assert on_ranks(3, rank) == [3] * 3


def test_a_rank_that_closes_late_hears_of_both_saves(on_ranks, places):
    """The last save is the tier's; rank 0 copies it, and must not forget the word on it."""
    late = threading.Event()

    def rank(communicator):
        manager = CheckpointManager(
            places[0],
            {"weights": np.zeros(1000)},
            communicator=communicator,
            local_tier=places[1],
            options=replace(OPTIONS, upload_every=LOCAL_ONLY, timeout=20.0),
        )
        manager.save(1, blocking=True)
        manager.save(2)
        if communicator.rank == 1:
            assert late.wait(60)
            # As long as rank 0 needs to be through with it, were it not to wait.
            late.clear()
            late.wait(2.0)
        else:
            late.set()
        manager.close()
        return 2 in steps(places[0])

    assert on_ranks(2, rank) == [True] * 2


def test_an_error_that_passes_costs_no_step(on_ranks, places, monkeypatch):
    on_nodes(on_ranks, places, 4, save_three, upload_every=LOCAL_ONLY)
    real, failed = LocalStorage.read_into, []

    def flaky(self, path, buffer, offset=0):
        if "near" in self.url and "step-0000000003" in path and not failed:
            failed.append(path)
            raise OSError(errno.EIO, "Input/output error", path)
        return real(self, path, buffer, offset)

    monkeypatch.setattr(LocalStorage, "read_into", flaky)
    assert on_nodes(on_ranks, places, 4, restore, attempts=3) == [3] * 4
    assert failed


def test_what_cannot_be_read_now_is_not_thrown_away(on_ranks, places, monkeypatch):
    on_nodes(on_ranks, places, 4, save_three, upload_every=LOCAL_ONLY)
    real = LocalStorage.read_into

    def broken(self, path, buffer, offset=0):
        if "near" in self.url and "step-0000000003" in path:
            raise OSError(errno.EIO, "Input/output error", path)
        return real(self, path, buffer, offset)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "read_into", broken)
        assert on_nodes(on_ranks, places, 4, restore) == [2] * 4
    assert all(list((places[1] / f"node{n}").glob("run-*/step-*3.g*")) for n in range(4))


def test_a_tier_whose_disk_is_full_is_still_read(places, monkeypatch):
    process = saving(places, LOCAL_ONLY)
    assert process.wait(60) == 0
    process.stdout.close()
    assert steps(places[0]) == [1, 3] or steps(places[0]) == [1]
    real = LocalStorage.create

    def full(self, path, data):
        if "near" in self.url and len(data):
            raise OSError(errno.ENOSPC, "No space left on device", path)
        real(self, path, data)

    monkeypatch.setattr(LocalStorage, "create", full)
    with contextlib.closing(
        CheckpointManager(places[0], state(), local_tier=places[1], options=FOREGROUND)
    ) as manager:
        assert manager.restore_latest() == 3


def test_large_files_are_copied_bit_by_bit(only_near, monkeypatch):
    monkeypatch.setattr("trainkit.checkpoint.copier._BATCH", 1000)
    with contextlib.closing(
        CheckpointManager(only_near[0], state(), local_tier=only_near[1], options=OPTIONS)
    ) as manager:
        assert manager.restore_latest() == 3
        manager.wait()
        assert manager.last_saved_step == 3
    it = state()
    with contextlib.closing(CheckpointManager(only_near[0], it, options=OPTIONS)) as reader:
        assert reader.restore_latest() == 3
        assert (it["weights"] == 3).all()


@pytest.fixture
def held_up(monkeypatch):
    """Copies wait before they write to the root, until they are let go."""
    go, begun, real = threading.Event(), threading.Event(), LocalStorage.write_all

    def write_all(self, files, alike=None):
        if threading.current_thread().name == "trainkit-copier":
            begun.set()
            assert go.wait(60)
        real(self, files, alike)

    monkeypatch.setattr(LocalStorage, "write_all", write_all)
    yield go, begun
    go.set()


def test_a_newer_save_takes_the_place_of_a_copy(only_near, held_up, monkeypatch):
    go, begun = held_up
    monkeypatch.setattr("trainkit.checkpoint.copier._PATIENCE", 0.1)
    it = state()
    manager = CheckpointManager(only_near[0], it, local_tier=only_near[1], options=OPTIONS)
    assert manager.restore_latest() == 3
    assert begun.wait(60)
    fill(it, 4)
    threading.Timer(0.5, go.set).start()
    manager.save(4, blocking=True)
    manager.close()
    assert steps(only_near[0]) == [1, 4]


def test_a_copy_that_was_given_up_commits_nothing(only_near, held_up, monkeypatch, caplog):
    go, begun = held_up
    monkeypatch.setattr("trainkit.checkpoint.copier._PATIENCE", 0.1)
    monkeypatch.setattr("trainkit.checkpoint.save.settling._MARGIN", 0.3)
    options = replace(OPTIONS, timeout=0.5)
    manager = CheckpointManager(only_near[0], state(), local_tier=only_near[1], options=options)
    assert manager.restore_latest() == 3
    assert begun.wait(60)
    manager.wait()  # a warning, and no error: the step is where it was
    assert "step 3 is still in the local tier alone" in caplog.text
    go.set()
    for thread in threading.enumerate():
        if thread.name == "trainkit-copier":
            thread.join(60)
    assert steps(only_near[0]) == [1]
    assert 3 in steps(only_near[1])
    manager._root.leave()
