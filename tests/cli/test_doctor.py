"""``trainkit doctor``: its streams, keys, exit codes, and what it loads."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_entry import imported
from trainkit.cli import main
from trainkit.cli.doctor import _size
from trainkit.doctor.checks import CHECKS

KEYS = ["check", "status", "found", "advice", "values"]
DOCS = Path(__file__).parents[2] / "docs" / "doctor.md"


def test_help_loads_no_framework_and_little_else():
    loaded = imported("doctor", "--help")
    assert not loaded & {"torch", "numpy", "tensorflow", "xgboost", "fsspec", "rich", "pynvml"}
    assert not {name for name in loaded if name.startswith("trainkit.doctor")}


def test_json_has_stable_keys(capsys):
    assert main(["doctor", "--json", "--only", "cpu", "--only", "limits"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    found = json.loads(printed.out)
    assert list(found) == ["fit", "host", "findings"]
    assert found["fit"] is True
    assert [one["check"] for one in found["findings"]] == [
        "cpu",
        "nofile",
        "memlock",
        "core",
        "pids",
    ]
    for one in found["findings"]:
        assert list(one) == KEYS
        assert one["status"] in ("ok", "warning", "broken", "not_checked")


def test_table(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINKIT_CHECKPOINT_DIR", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    assert main(["doctor", "--only", "checkpoint", "--only", "cpu"]) == 78
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["CHECK", "FOUND"]
    assert any(re.match(r"checkpoint +would break +\S", line) for line in lines)
    assert any(line.strip().startswith("→ ") for line in lines)
    assert lines[-1].startswith("1 thing(s) would break this job, ")
    assert all(len(line) <= 200 for line in lines)


@pytest.mark.parametrize(
    "argv",
    [
        ["--only", "nothing"],
        ["--state-size", "big"],
        ["--state-size", "-1"],
        ["--loader-workers", "-1"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["unknown"],
    ],
)
def test_wrong_usage(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", *argv])
    assert stop.value.code == 2
    assert argv[-1] in capsys.readouterr().err


def test_a_setting_that_cannot_be_read(monkeypatch, capsys):
    monkeypatch.setenv("TRAINKIT_TIMEOUT", "soon")
    code = main(["doctor", "--only", "all-reduce-across"])
    assert code == 2
    assert "TRAINKIT_TIMEOUT='soon'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "size"),
    [("1000", 1000), ("64MB", 64 << 20), ("1.5GiB", 3 << 29), ("2k", 2048), ("3 T", 3 << 40)],
)
def test_sizes(text, size):
    assert _size(text) == size


def test_progress_is_for_a_terminal():
    command = [sys.executable, "-m", "trainkit", "doctor", "--only", "peers", "--timeout", "8"]
    environ = os.environ | {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "nobody.invalid",
        "MASTER_PORT": "1",
    }
    ours, theirs = pty.openpty()
    try:
        ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, env=environ)
    finally:
        os.close(theirs)
    shown = os.read(ours, 1 << 20).decode()
    os.close(ours)
    assert ended.returncode == 78
    assert re.search(r"checking peers \(\d+ of 8 s\)", shown)
    assert shown.endswith("\r\x1b[K")
    quiet = subprocess.run(command, capture_output=True, env=environ)
    assert quiet.stderr == b""


def test_the_docs_name_every_check():
    text = DOCS.read_text(encoding="utf-8")
    for entry in CHECKS:
        assert f"`{entry.name}`" in text, entry.name
