"""What a program imports, found without running it."""

import pytest

from trainkit.launch.entry import Entry, names_torch


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import torch", True),
        ("import torch.nn as nn", True),
        ("from torch import nn", True),
        ("def f():\n    import torchvision", True),
        ("import json, os", False),
        ("import torching", False),
        ("'import torch'", False),
        ("import mine", True),
        ("from package import deeper", True),
        ("from package import nothing", False),
        ("syntax error here", False),
    ],
)
def test_torch_is_found_in_the_programs_own_files(tmp_path, text, expected):
    (tmp_path / "train.py").write_text(text)
    (tmp_path / "mine.py").write_text("import other")
    (tmp_path / "other.py").write_text("import mine\nimport torch")
    (tmp_path / "package").mkdir()
    (tmp_path / "package/__init__.py").write_text("")
    (tmp_path / "package/deeper.py").write_text("import torch")
    (tmp_path / "package/nothing.py").write_text("")
    assert names_torch(Entry("script", str(tmp_path / "train.py"))) is expected


def test_modules_and_programs(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("import torch")
    monkeypatch.chdir(tmp_path)
    assert names_torch(Entry("module", "mine"))
    assert names_torch(Entry("module", "trainkit.recipes.mnist"))
    assert not names_torch(Entry("module", "json.tool"))
    assert not names_torch(Entry("module", "not_there"))
    assert not names_torch(Entry("program", "sh"))
