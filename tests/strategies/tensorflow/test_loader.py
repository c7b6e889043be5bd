"""Loaders, models and errors of TensorFlow's strategies; see checks.py, which runs apart."""

import ast
import importlib.util
from pathlib import Path

import pytest

from tests.checkpoint.adapters.tensorflow.conftest import Checks

FILE = Path(__file__).with_name("checks.py")
HELPERS = {"connected", "ids", "seen"}
NAMES = [node.name for node in ast.parse(FILE.read_text()).body if hasattr(node, "args")]


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("needs tensorflow-cpu: trainkit[tensorflow-cpu]")
    log = tmp_path_factory.mktemp("tensorflow") / "log"
    process = Checks(log, {"CUDA_VISIBLE_DEVICES": ""}, FILE)
    yield process
    process.close()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in HELPERS])
def test_it_holds(checks, name, tmp_path):
    checks.run(name, tmp_path)
