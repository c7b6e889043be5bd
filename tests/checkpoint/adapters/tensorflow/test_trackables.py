"""TensorFlow in checkpoints: each check of checks.py, in a process that has TensorFlow."""

import ast
import contextlib
import subprocess
from pathlib import Path

import pytest

from tests.checkpoint.adapters.tensorflow.conftest import CHECKS, Checks

ALONE = ("check_two_replicas", "check_a_full_local_folder_is_named")
NAMES = [
    node.name
    for node in ast.parse(CHECKS.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ALONE])
def test_trackables(checks, tmp_path, name):
    checks.run(name, tmp_path)


def test_in_an_object_store(checks, s3_server, tmp_path_factory, s3):
    log = tmp_path_factory.mktemp("store") / "log"
    process = Checks(log, dict(s3_server.variables))
    try:
        process.run("check_training_goes_on_as_if_nothing_had_been", log.parent, s3)
    finally:
        process.close()


def test_two_replicas(checks, tmp_path_factory):
    # its two devices have to be there before anything else is
    log = tmp_path_factory.mktemp("replicas") / "log"
    process = Checks(log, {})
    try:
        process.run("check_two_replicas", log.parent)
    finally:
        process.close()


@contextlib.contextmanager
def small_disk(folder: Path):
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_local_folder_is_named(checks, tmp_path):
    with small_disk(tmp_path / "small") as small:
        checks.run("check_a_full_local_folder_is_named", tmp_path, str(small))
