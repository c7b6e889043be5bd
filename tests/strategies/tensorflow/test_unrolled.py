"""Copies of a traced step; see unrolled_checks.py, which runs apart."""

from pathlib import Path

import pytest

from tests.strategies.tensorflow.conftest import names_in

FILE = Path(__file__).with_name("unrolled_checks.py")


@pytest.mark.parametrize("name", [name for name in names_in(FILE) if name != "several"])
def test_it_holds(checks, name, tmp_path):
    checks.run(name, tmp_path)
