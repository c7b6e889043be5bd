"""Flags of torchrun, as flags and as variables."""

import argparse

import pytest

from trainkit.errors import InputMissingError, UsageError
from trainkit.launch.flags import parse_flags
from trainkit.launch.options import read_options
from trainkit.launch.output import Streams


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("")
    return str(path)


def read(*argv, **environ):
    return read_options(parse_flags([*map(str, argv)], argparse.ArgumentParser()), environ)


PLACES = {
    "--nnodes": "1:4",
    "--nproc-per-node": "gpu",
    "--node-rank": "3",
    "--master-addr": "host",
    "--master-port": "1",
    "--rdzv-backend": "c10d",
    "--rdzv-endpoint": "host:1",
    "--rdzv-id": "job",
    "--rdzv-conf": "a=1,b=2",
}


@pytest.mark.parametrize("flag", PLACES)
def test_who_takes_part_becomes_a_variable(script, flag):
    variable = "PET_" + flag[2:].upper().replace("-", "_")
    expected = {variable: PLACES[flag]}
    assert read(flag, PLACES[flag], script).pet == expected
    underscored = "--" + flag[2:].replace("-", "_")
    assert read(f"{underscored}={PLACES[flag]}", script).pet == expected
    assert read(script, **expected).pet == {}  # it is one already


def test_standalone(script):
    assert read("--standalone", script).pet == {"PET_STANDALONE": "1"}


@pytest.mark.parametrize(
    ("flag", "value", "field", "expected"),
    [
        ("--max-restarts", "3", "max_restarts", 3),
        ("--monitor-interval", "0.5", "monitor_interval", 0.5),
        ("--role", "trainer", "role", "trainer"),
        ("--local-addr", "me", "local_addr", "me"),
        ("--shutdown-timeout", "7", "grace_period", 7.0),
    ],
)
def test_flag_and_variable_say_the_same(script, flag, value, field, expected):
    variable = "PET_" + flag[2:].upper().replace("-", "_")
    assert getattr(read(flag, value, script), field) == expected
    assert getattr(read(script, **{variable: value}), field) == expected
    assert getattr(read(flag, value, script, **{variable: "9"}), field) == expected
    unset = getattr(read(script), field)
    assert getattr(read(script, **{variable: ""}), field) == unset


def test_output(script):
    output = read("--log-dir", "d", "-r", "0:1,1:2", "--tee", "3", script).output
    assert output.log_dir == "d"
    assert output.redirects == Streams(0, {0: 1, 1: 2})
    assert output.tee == Streams(3)
    shown = read(script, PET_LOCAL_RANKS_FILTER="0,2", PET_REDIRECTS="1").output
    assert shown.shown == {0, 2}
    assert shown.redirects == Streams(1)


@pytest.mark.parametrize("value", ["", "1", "true"])
def test_a_switch_that_is_set_and_empty_is_on(value):
    assert read("mine", "--lr", "1", PET_MODULE=value).entry.kind == "module"
    assert read("prog", PET_NO_PYTHON=value).entry.argv() == ["prog"]


def test_what_follows_the_program_is_its_own(script):
    options = read(script, "--max-restarts", "3", "-m")
    assert options.max_restarts is None
    assert options.entry.arguments == ("--max-restarts", "3", "-m")


@pytest.mark.parametrize(
    ("argv", "environ", "text"),
    [
        (["-r", "7"], {}, "--redirects='7'"),
        (["--local-ranks-filter", "a"], {}, "--local-ranks-filter='a'"),
        ([], {"PET_MAX_RESTARTS": "-1"}, "PET_MAX_RESTARTS='-1': expected a whole number"),
        ([], {"PET_MONITOR_INTERVAL": "x"}, "PET_MONITOR_INTERVAL='x'"),
        ([], {"PET_MODULE": "perhaps"}, "PET_MODULE='perhaps'"),
    ],
)
def test_values_that_cannot_be_meant(script, argv, environ, text):
    with pytest.raises(UsageError, match=text.replace("'", ".")):
        read(*argv, script, **environ)


def test_programs_that_are_not_there_or_not_python(script):
    with pytest.raises(InputMissingError, match="there is no script"):
        read("gone.py")
    with pytest.raises(UsageError, match="exclude each other"):
        read("-m", "--no-python", "x")
