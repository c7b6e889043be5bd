import inspect
from pathlib import Path

import pytest

from trainkit import errors
from trainkit.errors import ExitCode, TrainkitError

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, TrainkitError) and cls is not TrainkitError
]


@pytest.mark.parametrize("cls", CLASSES)
def test_each_error_is_also_a_builtin_that_people_catch(cls):
    builtins = [b for b in cls.__mro__ if b.__module__ == "builtins"]
    assert set(builtins) - {BaseException, Exception, object}


@pytest.mark.parametrize("cls", CLASSES)
def test_each_error_has_a_code_that_operators_agree_on(cls):
    code = cls.exit_code
    assert code in ExitCode
    # 1–127 is permanent and 128 and above retried by every operator
    assert (code >= 128) == issubclass(cls, errors.RetryableError | errors.Preempted)


def test_the_docs_list_every_code():
    text = (Path(__file__).parents[1] / "docs" / "exit-codes.md").read_text()
    for code in ExitCode:
        assert f"| {code.value} | {code.name} |" in text
