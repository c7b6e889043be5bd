"""kill -9 of real processes at random moments of saving."""

import os
import random
import signal
import subprocess
import sys

import numpy as np

from trainkit.checkpoint import CheckpointManager, CheckpointOptions

ROUNDS = 20

CHILD = """
import sys
import numpy as np
from trainkit.checkpoint import CheckpointManager

state = {"weights": np.zeros(250_000), "table": {"step": 0}}
manager = CheckpointManager(sys.argv[1], state, keep=2)
step = manager.restore_latest() or 0
while True:
    step += 1
    state["weights"][:] = step
    state["table"]["step"] = step
    manager.save(step, blocking=True)
    print(step, flush=True)
"""


def test_the_newest_committed_step_survives_any_kill(tmp_path):  # B040
    rng = random.Random(7)
    acknowledged = 0
    for _ in range(ROUNDS):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        with child:
            try:
                for _ in range(rng.randint(1, 4)):
                    line = child.stdout.readline()
                    assert line, "the child ended by itself"
                    acknowledged = int(line)
                # Somewhere within the next save, which takes some 10 ms; no wait for anything.
                try:
                    child.wait(timeout=rng.uniform(0, 0.03))
                except subprocess.TimeoutExpired:
                    os.kill(child.pid, signal.SIGKILL)
            finally:
                child.kill()
            for line in child.stdout:
                if line.endswith("\n"):
                    acknowledged = int(line)
        assert child.returncode == -signal.SIGKILL
        state = {"weights": np.zeros(250_000), "table": {"step": 0}}
        reader = CheckpointManager(tmp_path, state, options=CheckpointOptions(read_only=True))
        step = reader.restore_latest()
        assert step in (acknowledged, acknowledged + 1)
        assert (state["weights"] == step).all()
        assert state["table"]["step"] == step
    assert not (tmp_path / ".quarantine").exists()
