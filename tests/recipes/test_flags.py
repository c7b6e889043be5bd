"""A new or changed flag is a decision: the lists here are what users script against."""

import json
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec

import pytest

pytest.importorskip("torch")

SHARED = [
    "epochs",
    "max_steps",
    "batch_size",
    "lr",
    "seed",
    "data_dir",
    "checkpoint_dir",
    "checkpoint_every",
    "init_from",
    "strategy",
    "precision",
    "compile",
    "trace",
    "output_dir",
]
FLAGS = {
    "tabular": [
        "seed",
        "data_dir",
        "checkpoint_dir",
        "checkpoint_every",
        "strategy",
        "output_dir",
        "rounds",
        "patience",
        "lr",
        "max_depth",
        "max_bin",
        "subsample",
        "dataset",
        "label",
        "external_memory",
        "batch_rows",
    ],
    "lm": [
        *SHARED,
        "weight_decay",
        "clip",
        "layers",
        "width",
        "heads",
        "context",
        "activation_checkpointing",
        "test_windows",
    ],
    "mnist": [*SHARED, "data_url"],
    "imagenet": [
        *SHARED,
        "warmup_epochs",
        "weight_decay",
        "label_smoothing",
        "model",
        "image_size",
        "workers",
        "synthetic",
        "synthetic_images",
    ],
}


TENSORFLOW = [*SHARED, "data_url", "steps_per_execution"]
IN_ITS_OWN_PROCESS = """
import json
from dataclasses import fields
from trainkit.recipes import mnist_tensorflow as recipe
from trainkit.recipes._config import parse

print(json.dumps(sorted(field.name for field in fields(recipe.Config))))
parse(recipe.Config, ["--help"], recipe.__doc__)
"""


def test_flags_of_the_tensorflow_recipe_are_frozen_and_explained():
    """Apart, since TensorFlow's threads and variables would stay with all other tests."""
    if find_spec("tensorflow") is None:
        pytest.skip("needs tensorflow-cpu: trainkit[tensorflow-cpu]")
    done = subprocess.run(
        [sys.executable, "-c", IN_ITS_OWN_PROCESS], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    names, _, shown = done.stdout.partition("\n")
    assert json.loads(names) == sorted(TENSORFLOW)
    for flag in TENSORFLOW:
        assert f"--{flag.replace('_', '-')}" in shown
    assert "default" in shown


@pytest.mark.parametrize("recipe", sorted(FLAGS))
def test_flags_are_frozen(recipe):
    config = import_module(f"trainkit.recipes.{recipe}").Config
    assert sorted(f.name for f in fields(config)) == sorted(FLAGS[recipe])


@pytest.mark.parametrize("recipe", sorted(FLAGS))
def test_help_explains_every_flag_with_its_default(recipe, capsys):
    from trainkit.recipes._config import parse

    module = import_module(f"trainkit.recipes.{recipe}")
    with pytest.raises(SystemExit) as leave:
        parse(module.Config, ["--help"], module.__doc__)
    assert leave.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for flag in FLAGS[recipe]:
        assert f"--{flag.replace('_', '-')}" in shown
    assert "default" in shown


def test_underscores_and_the_rank_of_the_old_launcher_are_taken():
    from trainkit.recipes import mnist
    from trainkit.recipes._config import parse

    config = parse(mnist.Config, ["--batch_size", "8", "--local-rank=1", "--local_rank=0"], None)
    assert config.batch_size == 8
