"""Ranks that are killed with SIGKILL at a random moment come back in place.

20 of 20 in CI, 100 of 100 by `make soak`: bare torchrun with gloo loses about half.
"""

import os
import random
import signal
import time

import pytest

from tests.launch.conftest import PLAIN, TRAINING
from trainkit.waiting import Deadline, wait_until

TWO = ("--nproc-per-node", 2)
DEADLINE = 60
"""Seconds for each restart; it takes a fraction of one."""

LOOP = PLAIN + (
    "over = sys.argv[1]\n"
    "def ends():\n"
    "    x = torch.tensor([float(os.path.exists(over))])\n"
    "    dist.all_reduce(x)\n"
    "    return x > 0\n"
    "while not ends(): pass\n"
    "dist.destroy_process_group()\n"
)
"""Meets all the time, until a file is there."""


def kill_one(one, rng, number, latest=1.0):
    """Kill a rank of the attempt of this number, at most ``latest`` seconds after its start."""

    def living():
        assert one.process.poll() is None, one.err
        return one.ranks() if one.err.count("starting again in place") == number else []

    wanted = rng.choice([1, 2])  # the first may be killed before the second is started
    wait = rng.choice([0.0, rng.uniform(0, latest / 10), rng.uniform(0, latest)])
    which = rng.random()
    found = wait_until(
        lambda: len(living()) >= wanted and living(),
        what=f"attempt {number}",
        deadline=Deadline(DEADLINE),
    )
    time.sleep(wait)
    os.kill(found[int(which * len(found))].pid, signal.SIGKILL)


@pytest.mark.parametrize("preload", ["--preload", "--no-preload"])
def test_a_rank_that_is_killed_at_any_moment_comes_back(
    launch, rounds, seed, tally, tmp_path, preload
):
    """Also while it starts, or is about to meet the other."""
    count = rounds(20, 100) if preload == "--preload" else rounds(3, 20)
    rng = random.Random(seed)
    over = tmp_path / "over"
    flags = (*TWO, "--max-restarts", count, preload)
    one = launch(*flags, script=LOOP, arguments=[over])
    for number in range(count):
        kill_one(one, rng, number, 1.0 if preload == "--preload" else 4.0)
    one.await_line(f" 2 {count}\n", 2)
    over.touch()
    assert one.wait() == 0, one.err
    assert one.err.count("starting again in place") == count
    tally.passed(f"launch, a rank killed, {preload}", count)


def test_training_goes_on_exactly_where_it_was_saved(launch, rounds, seed, tally, tmp_path):
    """Weights are those of a run that nobody disturbs, however often a rank is killed."""

    def weights(one):
        lines = [line.split() for line in one.out.splitlines() if "weights" in line]
        return {float(words[-1]) for words in lines}

    count, rng = rounds(3, 20), random.Random(seed)
    environ = {"STEPS": str(50 * (count + 1)), "EVERY": "7"}  # 50 take a second, or longer
    unbroken = launch(
        *TWO, script=TRAINING, TRAINKIT_CHECKPOINT_DIR=str(tmp_path / "unbroken"), **environ
    )
    one = launch(
        *(*TWO, "--max-restarts", count),
        script=TRAINING,
        TRAINKIT_CHECKPOINT_DIR=str(tmp_path / "ckpt"),
        PAUSE="0.02",
        **environ,
    )
    for number in range(count):
        kill_one(one, rng, number)
    assert one.wait() == 0, one.err
    assert unbroken.wait() == 0, unbroken.err
    assert len(weights(one)) == 1
    assert weights(one) == weights(unbroken)
    tally.passed("launch, a rank killed in training", count)
