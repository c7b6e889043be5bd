"""The doctor as people run it: a command, with the environment of a pod."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from trainkit.testing import requires_root

DEADLINE = 240
MARKS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TRAINKIT_", "PET_", "OMP_")


@dataclass
class Told:
    """What one run of the command said."""

    code: int
    out: str
    err: str

    @property
    def findings(self):
        return json.loads(self.out)["findings"]

    def of(self, check):
        """The one finding of this name."""
        (found,) = [one for one in self.findings if one["check"] == check]
        return found


@pytest.fixture
def doctor():
    """Run `trainkit doctor --json` with more variables; gives what it said."""

    def _doctor(*argv, json=True, before=(), limit=None, **variables):
        environ = {n: v for n, v in os.environ.items() if not n.startswith(MARKS)}
        command = [*before, sys.executable, "-m", "trainkit", "doctor", *map(str, argv)]
        ended = subprocess.run(
            command + ["--json"] * json,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            env=environ | {name: str(value) for name, value in variables.items()},
            preexec_fn=limit,
        )
        return Told(ended.returncode, ended.stdout, ended.stderr)

    return _doctor


@pytest.fixture
def mounted(request):
    """Words to put before a command that sees a file system of its own at a folder."""

    def _mounted(folder, options, then="true"):
        script = f'mount -t tmpfs -o {options} tmpfs "{folder}" && {then} && exec "$@"'
        words = ["unshare", "--mount", "sh", "-c", script, "sh"]
        tried = subprocess.run([*words, "true"], capture_output=True, text=True, timeout=60)
        if tried.returncode:
            pytest.skip(f"mounting is not permitted here: {tried.stderr.strip()}")
        return words

    return _mounted


@pytest.fixture
def without_torch(tmp_path):
    """Variables with which no Python finds torch."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hides:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            raise ModuleNotFoundError('no torch', name='torch')\n"
        "sys.meta_path.insert(0, Hides())\n"
    )
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}


root = requires_root()
