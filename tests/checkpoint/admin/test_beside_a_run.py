"""People look and tidy while a run saves: it goes on, and nobody sees damage that is none."""

import json
import os
import signal
import subprocess
import sys

from tests.checkpoint.admin.checkpoints import Root
from trainkit.checkpoint import CheckpointManager
from trainkit.checkpoint.admin.cleaning import find_leftovers, remove_leftover
from trainkit.checkpoint.admin.comparison import Side, compare
from trainkit.checkpoint.admin.exporting import export
from trainkit.checkpoint.admin.inspection import inspect
from trainkit.checkpoint.admin.locating import newest_whole
from trainkit.checkpoint.admin.pruning import find_surplus, remove_step
from trainkit.checkpoint.admin.survey import State, list_root, survey
from trainkit.checkpoint.admin.verification import exit_code, verify
from trainkit.errors import CheckpointDamagedError, InputMissingError, RetryableError

ROUNDS = 12

RUN = """
import sys
from trainkit.checkpoint import CheckpointManager

state = {"list": list(range(50_000)), "table": {"step": 0}}
manager = CheckpointManager(sys.argv[1], state, keep=2)
step = 0
while True:
    step += 1
    state["table"]["step"] = step
    manager.save(step, blocking=True)
    print(step, flush=True)
"""


def look(storage):
    """Everything that only reads; retention may take away what is being looked at."""
    assert {s.state for s in survey(storage)} <= {State.COMMITTED, State.UNCOMMITTED}
    try:
        verdicts = verify(storage, list_root(storage))
        assert exit_code(verdicts) == 0, [verdict.problems for verdict in verdicts]
    except RetryableError:
        pass
    try:
        newest = newest_whole(storage)
    except InputMissingError:
        return
    for action in (
        lambda: inspect(storage, newest),
        lambda: list(compare(*(Side.open(storage, newest) for _ in range(2)))),
    ):
        try:
            action()
        except (CheckpointDamagedError, InputMissingError):
            assert storage.size(f"{newest.name}/MANIFEST.json") is None


def test_a_run_goes_on(tmp_path):
    root = Root(tmp_path / "root")
    cut_off = root.save(1, generation=1, commit=False)  # by a run before
    storage = root.storage
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, storage.url], stdout=subprocess.PIPE, text=True
    )
    with run:
        try:
            steps = [int(run.stdout.readline()) for _ in range(3)]
            for _ in range(ROUNDS):
                look(storage)
                for leftover in find_leftovers(storage):
                    assert leftover.path == cut_off.name
                    remove_leftover(storage, leftover)
                for folder in find_surplus(storage, 1):
                    remove_step(storage, folder)
                steps.append(int(run.stdout.readline()))
        finally:
            os.kill(run.pid, signal.SIGKILL)
        steps += [int(line) for line in run.stdout if line.endswith("\n")]
    assert steps == list(range(1, len(steps) + 1))
    state = {"list": [], "table": {}}
    manager = CheckpointManager(storage.url, state)
    restored = manager.restore_latest()
    manager.close()
    assert restored in (steps[-1], steps[-1] + 1)
    assert state["table"] == {"step": restored}
    export(storage, newest_whole(storage), tmp_path / "out", entry="table")
    assert json.loads((tmp_path / "out" / "table.json").read_text()) == {"step": restored}
    assert not storage.names(".quarantine")
