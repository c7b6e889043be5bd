"""TensorFlow in a process of its own: its threads and memory would stay with all other tests."""

import importlib.util
import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).with_name("checks.py")

SERVE = """
import importlib.util, json, sys, tempfile, traceback
from pathlib import Path

answers = sys.stdout
sys.stdout = sys.stderr
spec = importlib.util.spec_from_file_location("checks", sys.argv[1])
checks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(checks)
print(json.dumps("ready"), file=answers, flush=True)
for line in sys.stdin:
    name, folder, arguments = json.loads(line)
    tempfile.tempdir = folder + "/tmp"
    Path(tempfile.tempdir).mkdir()
    try:
        getattr(checks, name)(Path(folder), *arguments)
        names = (path.name for path in Path(tempfile.tempdir).iterdir())
        # TensorFlow leaves what it makes of functions, and Python what it compiles of that.
        left = sorted(name for name in names if not name.startswith(("__autograph", "__pycache__")))
        told = f"the check left {left} in its temporary folder" if left else ""
    except BaseException:
        told = traceback.format_exc()
    print(json.dumps(told), file=answers, flush=True)
"""


class Checks:
    """A process that runs functions of a file, checks.py here, by name."""

    def __init__(self, log: Path, variables: dict[str, str], checks: Path = CHECKS) -> None:
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVE, str(checks)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **variables},
            )
        assert self._answer(120) == "ready"

    def run(self, name: str, folder: Path, *arguments: str) -> None:
        self._process.stdin.write(json.dumps([name, str(folder), arguments]).encode() + b"\n")
        self._process.stdin.flush()
        told = self._answer(120)
        assert not told, told

    def close(self) -> None:
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self, seconds: float) -> str:
        ready = select.select([self._process.stdout], [], [], seconds)[0]
        line = self._process.stdout.readline() if ready else b""
        if not line:
            text = self._log.read_text(errors="replace")[-4000:]
            pytest.fail(f"the process with TensorFlow {'died' if ready else 'hangs'}:\n{text}")
        return json.loads(line)


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    """Runs one check of checks.py."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("needs tensorflow-cpu: trainkit[tensorflow-cpu]")
    process = Checks(tmp_path_factory.mktemp("tensorflow") / "log", {})
    yield process
    process.close()
