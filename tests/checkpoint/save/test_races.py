"""Never two runs in one folder, and always one that follows."""

import subprocess
import sys
from pathlib import Path

RACES = 100


def test_races_of_real_processes(tmp_path):
    script = Path(__file__).with_name("races.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(RACES)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{RACES} races\n"
