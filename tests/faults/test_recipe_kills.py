"""kill -9 of the MNIST recipe at random moments of its saves; started again, it goes on exactly.

What each step of each life consumed is in the recipe's own trace. It has to be, bit for bit, what
an unbroken run consumed at that step, and along the line of history that was kept every sample
of every epoch is there once.
"""

import itertools
import random
import struct
import time

import pytest

from tests.faults.trials import Report
from trainkit.data.mnist import load_mnist

pytest.importorskip("torch")

from tests.faults.recipe import BROKEN, NUM_SAMPLES, Run, violations

KILLS = {1: 10, 2: 10}
"""How often CI kills, by number of ranks; a soak does ten times as many."""

LIVES = 5
"""Kills of one run, before it is let end."""


@pytest.fixture
def digits(tmp_path):
    """A folder with a few of the digits that come with trainkit, as MNIST's files."""
    folder = tmp_path / "digits"
    folder.mkdir()
    for split, train, count in (("train", True, NUM_SAMPLES), ("t10k", False, 40)):
        arrays = load_mnist(train=train)
        for name, array in (("images-idx3", arrays.images), ("labels-idx1", arrays.labels)):
            shape = (count, *array.shape[1:])
            head = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)
            size = len(array.data) // array.shape[0] * count
            (folder / f"{split}-{name}-ubyte").write_bytes(head + bytes(array.data[:size]))
    return folder


def kills(top, digits, world, count, variant=None):
    """Kill runs ``count`` times, and compare each with one that ends in peace."""
    report, began = Report(), time.monotonic()
    rng = random.Random(f"{world} {variant}")
    with Run(top / "unbroken", digits, world) as unbroken:
        done = unbroken.finish()
    assert not unbroken.wrong, unbroken.wrong
    for number in itertools.count():
        if report.count == count:
            break
        with Run(top / f"run{number}", digits, world, variant) as run:
            faults = []
            for _ in range(min(LIVES, count - report.count)):
                if (fault := run.kill(rng)) is None:
                    break
                faults.append(fault)
            last = run.finish()
        wrong = violations(run, unbroken)
        if (last.get("step"), last.get("test_accuracy")) != (done["step"], done["test_accuracy"]):
            wrong.append(f"it ends with {last}, not with {done}")
        report.violations += [f"run {number} ({', '.join(faults)}): {text}" for text in wrong]
        for fault in faults:
            report.add(fault, [])
    report.seconds = time.monotonic() - began
    return report


@pytest.mark.parametrize("world", KILLS)
def test_a_recipe_that_is_killed_goes_on_exactly(tally, scale, tmp_path, digits, world):
    report = kills(tmp_path, digits, world, KILLS[world] * scale)
    tally("Recipe, kill -9 while it saves", report)
    print(f"{world} rank(s): {report.faults}")
    report.check()
    assert report.count == KILLS[world] * scale
    assert any("in a save" in kind for kind in report.faults), "no kill was in a save"


@pytest.mark.parametrize("variant", BROKEN)
def test_control(tmp_path, digits, variant):
    report = kills(tmp_path, digits, 1, 4, variant)
    assert any(BROKEN[variant][1] in text for text in report.violations), report.violations
