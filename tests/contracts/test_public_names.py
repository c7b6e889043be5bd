"""``import trainkit`` is cheap and whole: no framework, sorted names, each of which is there."""

import subprocess
import sys

import pytest

import trainkit

FRAMEWORKS = ("torch", "tensorflow", "xgboost", "mpi4py", "numpy")


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after ``code``."""
    report = "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_trainkit_imports_no_framework():
    assert not modules_after("import trainkit").intersection(FRAMEWORKS)


def test_nor_does_looking_at_its_names():
    assert not modules_after("import trainkit; dir(trainkit)").intersection(FRAMEWORKS)


def test_a_framework_would_be_seen():
    numpy_or_stand_in = "import sys, types; sys.modules['numpy'] = types.ModuleType('numpy')"
    assert "numpy" in modules_after(numpy_or_stand_in)


def test_all_is_sorted_and_without_repetition():
    assert list(trainkit.__all__) == sorted(set(trainkit.__all__))


@pytest.mark.parametrize("name", trainkit.__all__)
def test_every_public_name_resolves(name: str):
    assert getattr(trainkit, name) is not None


def test_star_import_gives_exactly_the_public_names():
    names: dict[str, object] = {}
    exec("from trainkit import *", names)
    names.pop("__builtins__")
    assert sorted(names) == list(trainkit.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'frobnicate'"):
        trainkit.frobnicate  # noqa: B018


@pytest.mark.parametrize("name", [n for n in trainkit.__all__ if not n.startswith("__")])
def test_public_names_need_no_framework_to_be_looked_up(name: str):
    assert not modules_after(f"from trainkit import {name}").intersection(FRAMEWORKS)
