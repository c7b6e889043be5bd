"""Copies of a traced step; see unrolled_checks.py, which runs apart."""

import ast
import importlib.util
from pathlib import Path

import pytest

from tests.checkpoint.adapters.tensorflow.conftest import Checks

FILE = Path(__file__).with_name("unrolled_checks.py")
NAMES = [node.name for node in ast.parse(FILE.read_text()).body if hasattr(node, "args")]


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("needs tensorflow-cpu: trainkit[tensorflow-cpu]")
    log = tmp_path_factory.mktemp("tensorflow") / "log"
    process = Checks(log, {"CUDA_VISIBLE_DEVICES": ""}, FILE)
    yield process
    process.close()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "several"])
def test_it_holds(checks, name, tmp_path):
    checks.run(name, tmp_path)
