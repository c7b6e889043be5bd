"""Names on disk: ordered, never ambiguous, never outside their folder."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.checkpoint.format.layout import StepFolder, check_entry_name, is_safe_path
from trainkit.errors import UsageError


def test_the_name_is_the_documented_one():
    assert StepFolder(100, 3, 0x7F2A).name == "step-0000000100.g03-7f2a"


@given(st.integers(0, 10**15), st.integers(1, 10**6), st.integers(0, 2**32 - 1))
def test_names_read_back(step, generation, attempt):
    folder = StepFolder(step, generation, attempt)
    assert StepFolder.parse(folder.name) == folder


@pytest.mark.parametrize(
    "name",
    ["step-100.g03-7f2a", "step-0000000100", "step-0000000100.g03-7F2A", ".generations",
     "step-0000000100.g003-7f2a", "xstep-0000000100.g03-7f2a", "step-0000000100.g03-7f2a\n"],
)  # fmt: skip
def test_other_names_are_no_steps(name):
    assert StepFolder.parse(name) is None


def test_age_is_the_order_of_saving_not_of_steps():
    before_going_back = StepFolder(500, 3, 9)
    after = StepFolder(310, 4, 0)
    assert after.age > before_going_back.age


@pytest.mark.parametrize(
    "path",
    ["../x", "a/../b", "/etc/passwd", "a//b", "", ".hidden", "a/.hidden", "a\\b", "a/b/c/d/e",
     "a/\u2025/b", "a\0", "a\n", "C:/x", "~", "-rf"],
)  # fmt: skip
def test_unsafe_paths(path):
    assert not is_safe_path(path)


def test_safe_paths():
    assert all(is_safe_path(p) for p in ("model/model.safetensors", "ranks/rank00000.json", "a"))


@pytest.mark.parametrize("name", ["", ".x", "a/b", "..", "a b", "ä", "x" * 101, "manifest.JSON", 3])
def test_bad_entry_names_are_refused_by_name(name):
    with pytest.raises(UsageError, match="cannot be the name"):
        check_entry_name(name)


def test_good_entry_names():
    for name in ("model", "ema_2", "D-net", "a.b"):
        check_entry_name(name)
