import stat

import pytest

from trainkit.errors import EnvironmentFaultError
from trainkit.launch.mpi.tools import MpiTools, implementation_of


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("mpirun (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/", "openmpi-5"),
        ("mpirun (Open MPI) 10.0.0\n", "openmpi-5"),
        ("mpirun (Open MPI) 4.1.4\n", "openmpi-4"),
        ("mpirun (Open MPI) 3.1.0rc1\n", "openmpi-4"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.18.1 Build 2026\n", "intel"),
        ("HYDRA build details:\n    Version:    5.0.2\n", "mpich"),
    ],
)
def test_implementations_are_told_apart(text, kind):
    assert implementation_of(text) == kind


def test_an_unknown_mpirun_is_named_by_its_first_line():
    with pytest.raises(EnvironmentFaultError, match="'mpirun_rsh of nobody'"):
        implementation_of("\nmpirun_rsh of nobody\nmore\n")


def program(folder, text, name="mpirun"):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_first_on_path_is_taken_and_asked(tmp_path):
    path = program(tmp_path, "echo 'mpirun (Open MPI) 4.1.4'")
    found = MpiTools.here({"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert found.mpirun == str(path)
    assert implementation_of(found.version) == "openmpi-4"


def test_one_that_fails_is_told_with_what_it_said(tmp_path):
    program(tmp_path, "echo libmpi.so.40: cannot open >&2; exit 127")
    with pytest.raises(
        EnvironmentFaultError, match=r"ended with 127: 'libmpi\.so\.40: cannot open'"
    ):
        MpiTools.here({"PATH": f"{tmp_path}:/usr/bin:/bin"})


def test_none_at_all_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(EnvironmentFaultError, match=r"no mpirun on PATH.*trainkit\[mpi\]"):
        MpiTools.here({"PATH": str(tmp_path)})
