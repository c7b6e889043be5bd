import json
import pathlib

import pytest

from trainkit import frameworks


def test_only_names_of_the_module_itself_count():
    assert frameworks.frameworks_named_by({"json": json, "p": pathlib.Path, "n": 3}) == []


def test_modules_classes_and_functions_count_by_their_package():
    torch = pytest.importorskip("torch")
    assert frameworks.frameworks_named_by({"nn": torch.nn}) == ["torch"]
    assert frameworks.frameworks_named_by({"Linear": torch.nn.Linear}) == ["torch"]
    assert frameworks.frameworks_named_by({"softmax": torch.nn.functional.softmax}) == ["torch"]

    class Net(torch.nn.Module):
        pass

    assert frameworks.of_object(Net()) == "torch"
    assert frameworks.of_object(3) is None
