"""One process with TensorFlow for all checks of a file: tests themselves do not import it."""

import ast
import importlib.util

import pytest

from tests.checkpoint.adapters.tensorflow.conftest import Checks


@pytest.fixture(scope="module")
def checks(request, tmp_path_factory):
    """What runs the functions of the module's ``FILE``."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("needs tensorflow-cpu: trainkit[tensorflow-cpu]")
    log = tmp_path_factory.mktemp("tensorflow") / "log"
    process = Checks(log, {"CUDA_VISIBLE_DEVICES": ""}, request.module.FILE)
    yield process
    process.close()


def names_in(file):
    """Functions of ``file``, without importing it."""
    return [node.name for node in ast.parse(file.read_text()).body if hasattr(node, "args")]
