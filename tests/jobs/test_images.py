"""The Dockerfiles: clean under hadolint, of this version, and named as the job YAML names them."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

import trainkit

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "images").glob("*/Dockerfile"))

every_dockerfile = pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.parent.name)


def hadolint(file: Path) -> subprocess.CompletedProcess[str]:
    command = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    if command is None:
        pytest.skip("hadolint is not in this environment: pip install 'trainkit[jobs]'")
    return subprocess.run(
        [command, "--no-color", "--failure-threshold", "info", file],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def instructions(file: Path) -> list[str]:
    joined = file.read_text().replace("\\\n", " ")
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


@every_dockerfile
def test_hadolint_has_nothing_to_say(file: Path):
    done = hadolint(file)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@every_dockerfile
def test_hadolint_hears_a_fault(file: Path, tmp_path: Path):
    broken = tmp_path / "Dockerfile"
    broken.write_text(file.read_text().replace("--no-install-recommends", ""))
    done = hadolint(broken)
    assert done.returncode == 1
    assert "DL3015" in done.stdout


@every_dockerfile
def test_the_last_stage_runs_as_a_number_that_is_not_root(file: Path):
    last = instructions(file)[-10:]
    # A number, because the kubelet cannot tell for a name whether it is root (runAsNonRoot).
    (user,) = [line for line in last if line.startswith("USER")]
    assert re.fullmatch(r"USER [1-9]\d+:0", user)


@every_dockerfile
def test_it_starts_and_stops_in_exec_form(file: Path):
    lines = instructions(file)
    entry = 'ENTRYPOINT ["tini", "--", "trainkit", "launch"]'
    assert entry in lines, "tini -g would send ranks a second SIGTERM"
    assert "STOPSIGNAL SIGTERM" in lines
    assert not [line for line in lines if re.match(r"(CMD|ENTRYPOINT) [^\[]", line)]


@every_dockerfile
def test_name_and_version_are_those_of_the_job_yaml(file: Path):
    text = file.read_text()
    assert f"-t ghcr.io/trainkit/{file.parent.name}:{trainkit.__version__} " in text
    assert f"ARG VERSION={trainkit.__version__}\n" in text
