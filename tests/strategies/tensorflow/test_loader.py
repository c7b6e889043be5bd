"""Loaders, models and errors of TensorFlow's strategies; see checks.py, which runs apart."""

from pathlib import Path

import pytest

from tests.strategies.tensorflow.conftest import names_in

FILE = Path(__file__).with_name("checks.py")
HELPERS = {"connected", "ids", "seen"}


@pytest.mark.parametrize("name", [name for name in names_in(FILE) if name not in HELPERS])
def test_it_holds(checks, name, tmp_path):
    checks.run(name, tmp_path)
