"""What people install: the package with its digits and type marker, and nothing else."""

import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import trainkit

ROOT = Path(__file__).parents[2]
IDX_FILES = [
    f"trainkit/data/mnist-10k/{split}-{kind}-ubyte.gz"
    for split in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    # No isolation: hatchling is in the test environment, so no network is needed.
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*build, "--disable-pip-version-check", "--wheel-dir", folder, ROOT],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.whl")
    return zipfile.ZipFile(file)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return Parser().parsestr(wheel.read(name).decode())


@pytest.mark.parametrize("name", [*IDX_FILES, "trainkit/py.typed", "trainkit/recipes/__init__.py"])
def test_the_wheel_holds(wheel: zipfile.ZipFile, name: str):
    assert wheel.read(name) == (ROOT / name).read_bytes()


def test_the_wheel_holds_trainkit_only(wheel: zipfile.ZipFile):
    folders = {name.partition("/")[0] for name in wheel.namelist()}
    assert folders == {"trainkit", f"trainkit-{trainkit.__version__}.dist-info"}


def test_the_wheel_holds_no_tests_and_no_leavings(wheel: zipfile.ZipFile):
    strays = ("/test_", "/conftest", "__pycache__", ".pyc")
    assert not [name for name in wheel.namelist() if any(stray in name for stray in strays)]


def test_the_licence_comes_along(wheel: zipfile.ZipFile, metadata: Message):
    (name,) = [name for name in wheel.namelist() if name.endswith("/LICENSE")]
    assert wheel.read(name) == (ROOT / "LICENSE").read_bytes()
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_base_install_is_free_of_frameworks(metadata: Message):
    requires = metadata.get_all("Requires-Dist") or []
    base = {line.split(">=")[0] for line in requires if "extra ==" not in line}
    assert base == {"fsspec", "xxhash", "rich", "tyro"}
    assert metadata["Version"] == trainkit.__version__
