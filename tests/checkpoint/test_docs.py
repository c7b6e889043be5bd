"""The code on TensorFlow and XGBoost in docs/checkpoints.md is run twice: begun, and resumed."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trainkit.checkpoint.format import catalog
from trainkit.storage import open_storage

DOCS = Path(__file__).parents[2] / "docs/checkpoints.md"

TRAIN_STEP = """
import tensorflow as tf

def train_step(model, optimizer):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(tf.ones([4, 8])) ** 2)
    variables = model.trainable_variables
    optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))

"""


def block(word, folder):
    if not DOCS.exists():
        pytest.skip("no docs beside the installed package")
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    (found,) = [text for text in blocks if f"import {word}\n" in text]
    return found.replace("/checkpoints/", f"{folder}/")


def needs(framework):
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"needs {framework}-cpu: trainkit[{framework}-cpu]")


def test_xgboost(tmp_path):
    needs("xgboost")
    import xgboost

    x = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    names = {
        "train": xgboost.DMatrix(x[:200], x[:200, 0] ** 2),
        "valid": xgboost.DMatrix(x[200:], x[200:, 0] ** 2),
    }
    code = block("xgboost", tmp_path)
    exec(code, names)
    rounds = names["booster"].num_boosted_rounds()
    assert catalog.committed(open_storage(tmp_path / "boost"))[0].step == rounds
    again = dict(names)
    exec(code, again)
    assert again["saving"].rounds_left(100) == 0
    assert again["booster"].save_raw() == names["booster"].save_raw()
    assert len(again["log"]["valid"]["rmse"]) == rounds


def test_tensorflow(tmp_path):
    needs("tensorflow")
    script = tmp_path / "script.py"
    script.write_text(TRAIN_STEP + block("keras", tmp_path) + "print(int(optimizer.iterations))\n")
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.split() == ["200"]
    steps = [folder.step for folder in catalog.committed(open_storage(tmp_path / "keras"))]
    assert steps == [200, 100]  # and nothing more by the second start
