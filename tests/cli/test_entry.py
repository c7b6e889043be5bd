"""The command itself: help, version, usage, errors, and how fast it starts."""

import os
import subprocess
import sys

import pytest

import trainkit
from trainkit.cli import main
from trainkit.cli.entry import COMMANDS
from trainkit.errors import DataError, Preempted

TRAINKIT = [sys.executable, "-m", "trainkit"]


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for name, (_, text) in COMMANDS.items():
        assert name in printed
        assert text in printed


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"trainkit {trainkit.__version__}\n"


@pytest.mark.parametrize(
    "argv", [[], ["nothing"], ["--nothing"], ["env", "--nothing"], ["env", "x"]]
)
def test_wrong_usage(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "usage: trainkit" in printed.err


@pytest.mark.parametrize(
    ("raised", "code"),
    [(DataError("bad bytes"), 65), (Preempted("asked to stop"), 143), (KeyboardInterrupt(), 130)],
)
def test_errors_become_exit_codes(raised, code, monkeypatch, capsys):
    def command(argv):
        raise raised

    monkeypatch.setattr("trainkit.cli.env.main", command)
    assert main(["env"]) == code
    printed = capsys.readouterr().err
    assert printed == (f"trainkit: {raised}\n" if str(raised) else "")


@pytest.mark.parametrize("argv", [["env"], ["--help"]])
def test_a_reader_that_has_gone_away_is_no_traceback(argv):
    read, write = os.pipe()
    os.close(read)
    try:
        ended = subprocess.run([*TRAINKIT, *argv], stdout=write, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(write)
    assert ended.stderr == ""
    assert ended.returncode in (0, 141)  # argparse swallows it where output is not buffered


def test_closed_stdout():
    command = f"{sys.executable} -m trainkit env >&-"
    ended = subprocess.run(command, shell=True, stderr=subprocess.PIPE, text=True)
    assert "Traceback" not in ended.stderr


def imported(*argv):
    """Modules that a command loads beyond those of the start-up budget."""
    budget = "import argparse, dataclasses, enum, json, re"
    script = (
        f"{budget}\nimport sys\nbefore = set(sys.modules)\nfrom trainkit.cli import main\n"
        f"try: main({list(argv)!r})\nexcept SystemExit: pass\n"
        f"print(*sorted(set(sys.modules) - before), file=sys.stderr)"
    )
    environ = {"PATH": os.environ["PATH"]}
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environ
    )
    return set(ended.stderr.split())


@pytest.mark.parametrize("argv", [["--help"], ["env"], ["env", "--json", "--explain"]])
def test_start_up_loads_little(argv):
    """The budget is 1.5 times the baseline; what costs most must not creep in."""
    loaded = imported(*argv)
    slow = {
        "logging",
        "rich",
        "socket",
        "pathlib",
        "shutil",
        "importlib.metadata",
        "subprocess",
        "typing",
    }
    slow |= {"torch", "numpy", "tensorflow", "xgboost", "mpi4py", "pynvml", "asyncio", "urllib"}
    assert not loaded & slow
    assert len({name for name in loaded if not name.startswith("trainkit")}) < 12, loaded


def test_a_lone_process_does_not_load_the_platforms():
    loaded = {
        name for name in imported("env") if name.startswith("trainkit.topology.environments.")
    }
    assert loaded == {"trainkit.topology.environments.local"}
