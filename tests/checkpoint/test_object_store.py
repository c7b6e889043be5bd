"""The whole protocol on real servers: of S3's kind, of Google's and of Azure's."""

import contextlib
import logging
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.cloud_servers import ACCOUNT_KEY
from tests.object_store import ACCESS_KEY, SECRET_KEY
from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.errors import EnvironmentFaultError
from trainkit.storage import ObjectStorage, open_storage

ROUNDS = {"s3": 6, "gs": 3, "az": 3}

CHILD = """
import sys
import numpy as np
from trainkit.checkpoint import CheckpointManager, CheckpointOptions

state = {"weights": np.zeros(250_000), "table": {"step": 0}}
options = CheckpointOptions(renewal=0.2)
manager = CheckpointManager(sys.argv[1], state, keep=2, options=options)
step = manager.restore_latest() or 0
while True:
    step += 1
    state["weights"][:] = step
    state["table"]["step"] = step
    manager.save(step, blocking=True)
    print(step, flush=True)
"""


def weights(value=0.0):
    return {"weights": np.full(1000, float(value)), "table": {"step": value}}


def fill(state, value):
    state["weights"][:] = value
    state["table"]["step"] = value


def objects(url):
    """Bytes of all objects below ``url``, by key."""
    storage = ObjectStorage(url)
    return {key: storage._fs.cat_file(key) for key in storage._fs.find(storage._root)}


def test_saves_of_which_most_does_not_change(s3):
    """The base of a fine-tuning: the store copies it, and each checkpoint is whole by itself."""
    frozen = np.random.default_rng(0).random(3 << 20)  # 24 MiB
    state = {"model": {"frozen": frozen, "trained": np.zeros(2 << 20)}}
    manager = CheckpointManager(s3, state, keep=2)
    for step in range(1, 5):
        state["model"]["trained"][:] = step
        manager.save(step, blocking=True)
    manager.close()
    assert manager.all_steps() == [3, 4]
    back = {"model": {"frozen": np.zeros(3 << 20), "trained": np.zeros(2 << 20)}}
    reader = CheckpointManager(s3, back, options=CheckpointOptions(read_only=True))
    for step in (3, 4):
        assert reader.restore(step) == step
        assert (back["model"]["frozen"] == frozen).all()
        assert (back["model"]["trained"] == step).all()


def test_saves_are_kept_and_restored(store):
    state = weights()
    manager = CheckpointManager(store, state, keep=2)
    assert manager.restore_latest() is None
    for step in range(1, 6):
        fill(state, step)
        manager.save(step, blocking=True)
    assert manager.all_steps() == [4, 5]
    other = weights()
    assert CheckpointManager(store, other).restore_latest() == 5
    assert (other["weights"] == 5).all()
    assert other["table"] == {"step": 5}
    assert CheckpointManager(store, other).restore(4) == 4
    assert not any("step-0000000003" in key for key in objects(store))


def test_a_damaged_checkpoint_is_passed_over(store, caplog):
    state = weights()
    manager = CheckpointManager(store, state)
    for step in (1, 2):
        fill(state, step)
        manager.save(step, blocking=True)
    storage = ObjectStorage(store)
    key = next(key for key in objects(store) if "step-0000000002" in key and "tensors" in key)
    data = bytearray(storage._fs.cat_file(key))
    data[-1] ^= 1
    storage._fs.pipe_file(key, bytes(data))
    other = weights()
    assert CheckpointManager(store, other).restore_latest() == 1
    assert (other["weights"] == 1).all()
    assert "do not match their checksum" in caplog.text


def test_a_run_that_was_overtaken_saves_no_more(store):
    first = CheckpointManager(store, weights())
    CheckpointManager(store, weights()).save(1)
    with pytest.raises(EnvironmentFaultError, match=r"another run saves to (s3|gs|az)://"):
        first.save(2, blocking=True)
    assert first.all_steps() == [1]


def test_a_second_run_is_refused_while_the_first_lives(store):
    command = [sys.executable, "-c", CHILD, store]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout.readline()
            options = CheckpointOptions(patience=1.0, renewal=0.2)
            with pytest.raises(EnvironmentFaultError, match=rf"is alive: .*{child.pid}"):
                CheckpointManager(store, weights(), options=options).save(1, blocking=True)
        finally:
            child.kill()
    state = {"weights": np.zeros(250_000), "table": {"step": 0}}
    with contextlib.closing(CheckpointManager(store, state, options=options)) as manager:
        step = manager.restore_latest()
        manager.save(step + 1, blocking=True)
        assert manager.latest_step() == step + 1


def test_no_credential_is_in_a_log_or_an_object(store, caplog):
    caplog.set_level(logging.DEBUG, logger="trainkit")
    state = weights()
    manager = CheckpointManager(store, state)
    manager.save(1, blocking=True)
    manager.restore_latest()
    text = caplog.text.encode() + b"".join(objects(store).values())
    for secret in (ACCESS_KEY, SECRET_KEY, ACCOUNT_KEY):
        assert secret.encode() not in text


def test_the_newest_committed_step_survives_any_kill(store):
    rng = random.Random(11)
    acknowledged = 0
    for _ in range(ROUNDS[store.partition(":")[0]]):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, store], stdout=subprocess.PIPE, text=True
        )
        with child:
            try:
                for _ in range(rng.randint(1, 3)):
                    line = child.stdout.readline()
                    assert line, "the child ended by itself"
                    acknowledged = int(line)
                # Somewhere within the next save, which takes some 100 ms.
                try:
                    child.wait(timeout=rng.uniform(0, 0.2))
                except subprocess.TimeoutExpired:
                    os.kill(child.pid, signal.SIGKILL)
            finally:
                child.kill()
            for line in child.stdout:
                if line.endswith("\n"):
                    acknowledged = int(line)
        assert child.returncode == -signal.SIGKILL
        state = {"weights": np.zeros(250_000), "table": {"step": 0}}
        reader = CheckpointManager(store, state, options=CheckpointOptions(read_only=True))
        step = reader.restore_latest()
        assert step in (acknowledged, acknowledged + 1)
        assert (state["weights"] == step).all()
        assert state["table"]["step"] == step
    assert open_storage(store).names(".quarantine") == []


UNCLOSED = """
import sys
import numpy as np
from trainkit.checkpoint import CheckpointManager, CheckpointOptions

def main():
    options = CheckpointOptions(background=sys.argv[2] == "background")
    manager = CheckpointManager(sys.argv[1], {"weights": np.zeros(10)}, options=options)
    manager.save(1)
    return manager

kept = main() if sys.argv[3] == "kept" else [main(), None][1]
"""


@pytest.mark.parametrize(("mode", "how"), [("background", "kept"), ("foreground", "dropped")])
def test_a_script_that_closes_nothing_leaves_the_folder_to_the_next(store, mode, how):
    """At its exit Python has ended the threads that a client of the store works with."""
    command = [sys.executable, "-c", UNCLOSED, store, mode, how]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "could not be released" not in ended.stderr
    assert "Traceback" not in ended.stderr
    assert any(name.endswith(".released") for name in open_storage(store).names(".generations"))
    state = {"weights": np.ones(10)}
    assert CheckpointManager(store, state).restore_latest() == 1
    assert (state["weights"] == 0).all()
