"""``trainkit env``: scripts rely on its keys, its streams and its exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.topology.environs import PYTORCHJOB, TORCHRUN
from trainkit.cli import main

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def seen(tmp_path):
    """Write what a process sees to a file, as JSON or as lines."""

    def _seen(environ, **more):
        path = tmp_path / "seen"
        if more:
            path.write_text(json.dumps({"environ": environ, **more}))
        else:
            path.write_text("".join(f"{name}={value}\n" for name, value in environ.items()))
        return str(path)

    return _seen


def test_json_of_lines(seen, capsys):
    assert main(["env", "--json", "--from", seen(PYTORCHJOB)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["platform"] == "pytorchjob"
    assert (found["rank"], found["world_size"], found["procs_to_launch"]) == (2, 4, 2)
    assert list(found)[:3] == ["platform", "role", "role_index"]
    assert len(found) == 17


def test_a_golden_case_as_it_is(tmp_path, capsys):
    case = next(
        case
        for case in json.loads((GOLDEN / "operators-v1.json").read_text())
        if case["id"] == "mpijob-launcher-2x2"
    )
    path = tmp_path / "case.json"
    path.write_text(json.dumps(case))
    assert main(["env", "--json", "--from", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    for name, value in case["expect"].items():
        assert found[name] == value


def test_only_the_file_is_seen(seen, capsys, monkeypatch):
    monkeypatch.setenv("TRAINKIT_PLATFORM", "slurm")
    monkeypatch.setenv("RANK", "5")
    assert main(["env", "--json", "--from", seen({"A": "1"})]) == 0
    assert json.loads(capsys.readouterr().out)["platform"] == "local"
    assert main(["env", "--json", "--from", seen(PYTORCHJOB | {"TRAINKIT_PLATFORM": "local"})]) == 0
    assert json.loads(capsys.readouterr().out)["platform"] == "local"


def test_table(seen, capsys):
    assert main(["env", "--from", seen(PYTORCHJOB)]) == 0
    rows = dict(
        line.split(maxsplit=1) for line in capsys.readouterr().out.split("\n\n")[0].splitlines()
    )
    assert rows["platform"] == "pytorchjob"
    assert rows["master_addr"] == "job-master-0"
    assert rows["min_nodes"] == "-"


def test_explain_names_the_variables_and_what_did_not_count(seen, capsys):
    environ = TORCHRUN | {"PMI_RANK": "0", "PMI_SIZE": "1"}
    assert main(["env", "--explain", "--from", seen(environ)]) == 0
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line}
    assert rows["rank"] == ["3", "RANK"]
    assert rows["node_rank"] == ["1", "GROUP_RANK"]
    assert rows["platform"] == ["torchelastic", "TORCHELASTIC_RUN_ID"]
    assert "not used: PMI_RANK='0', PMI_SIZE='1'" in printed


def test_explain_in_json(seen, capsys):
    argv = ["env", "--json", "--explain", "--from", seen({"JOB_COMPLETION_INDEX": "1"})]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sources"]["platform"] == "default"
    assert "TRAINKIT_NUM_NODES" in found["notes"][0]
    assert found["unused"] == []


def test_warnings_are_shown_without_explain_too(seen, capsys):
    assert main(["env", "--from", seen({"JOB_COMPLETION_INDEX": "1"})]) == 0
    assert "note: JOB_COMPLETION_INDEX='1'" in capsys.readouterr().out


def test_topology_error(seen, capsys):
    assert main(["env", "--from", seen(PYTORCHJOB | {"WORLD_SIZE": "5"})]) == 78
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("trainkit: WORLD_SIZE='5' fits neither")
    assert printed.err.count("\n") == 1


def test_missing_file(capsys, tmp_path):
    assert main(["env", "--from", str(tmp_path / "nothing")]) == 66
    assert "nothing" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"environ": ', "# no environment\n", '{"environ": 3}'])
def test_bad_file(text, capsys, tmp_path):
    path = tmp_path / "bad"
    path.write_text(text)
    assert main(["env", "--from", str(path)]) == 65
    assert str(path) in capsys.readouterr().err


def test_standard_input_and_this_process():
    command = [sys.executable, "-m", "trainkit", "env", "--json", "--from", "-"]
    ended = subprocess.run(command, input="RANK=0\nWORLD_SIZE=1\n", capture_output=True, text=True)
    assert json.loads(ended.stdout)["platform"] == "env"
    ended = subprocess.run(
        [sys.executable, "-m", "trainkit", "env", "--json"],
        capture_output=True,
        text=True,
        env=TORCHRUN,
    )
    assert json.loads(ended.stdout)["rank"] == 3


def test_text_that_the_terminal_cannot_show(tmp_path):
    path = tmp_path / "seen"
    path.write_bytes("RANK=0\nWORLD_SIZE=2\nMASTER_ADDR=høst".encode() + b"\xff\n")
    for flags in ([], ["--json"]):
        ended = subprocess.run(
            [sys.executable, "-m", "trainkit", "env", "--from", str(path), *flags],
            capture_output=True,
            env={"PYTHONIOENCODING": "ascii"},
        )
        assert ended.returncode == 0, ended.stderr


def test_values_are_not_shown_but_those_of_the_topology(seen, capsys):
    environ = PYTORCHJOB | {"HF_TOKEN": "s3cr3t", "AWS_SECRET_ACCESS_KEY": "s3cr3t"}
    assert main(["env", "--explain", "--from", seen(environ)]) == 0
    assert "s3cr3t" not in capsys.readouterr().out
