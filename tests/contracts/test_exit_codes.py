"""Exit codes are API: people read them in the docs and operators act on them."""

import re
from pathlib import Path

import pytest

from trainkit import errors
from trainkit.errors import ExitCode, TrainkitError

ROOT = Path(__file__).parents[2]
ERRORS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, TrainkitError) and value is not TrainkitError
]


@pytest.mark.parametrize("code", ExitCode, ids=lambda code: code.name)
def test_the_docs_have_a_row_for_every_code(code: ExitCode):
    page = (ROOT / "docs/exit-codes.md").read_text()
    rows = [line for line in page.splitlines() if re.match(rf"\| *`?{int(code)}`? *\|", line)]
    assert len(rows) == 1, f"docs/exit-codes.md needs one row for {int(code)} ({code.name})"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_the_tree_in_the_docstring_says_the_code(error: type[TrainkitError]):
    assert errors.__doc__ is not None
    (line,) = [line for line in errors.__doc__.splitlines() if f"─ {error.__name__} " in line]
    assert int(error.exit_code) in map(int, re.findall(r"\b\d+\b", line))


def test_codes_fit_the_rule_of_the_operators():
    retryable = {ExitCode.INTERRUPTED, ExitCode.RETRYABLE, ExitCode.PREEMPTED}
    assert {code for code in ExitCode if code >= 128} == retryable
