"""Real kills by the kernel, below a real memory limit: told apart from those by a person."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainkit.config import environ
from trainkit.resources.cgroups import folders

LIMIT = 96 << 20

LAUNCHER = """
import os, signal, subprocess, sys, time
from pathlib import Path

Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))

from trainkit.launch.report import RankEnd, failure_report
from trainkit.resources.memory import oom_kills

before = oom_kills()
program = {
    "allocates": "x = bytearray(1 << 30)",
    "is killed": "import os; os.kill(os.getpid(), 9)",
    "loses a child": "import subprocess, sys\\n"
    "subprocess.run([sys.executable, '-c', 'x = bytearray(1 << 30)'])",
}[sys.argv[2]]
rank = subprocess.run([sys.executable, "-c", program])
ended = dict(exitcode=rank.returncode, time=time.time(), error_file=None)
end = RankEnd(rank=0, local_rank=0, label="r0", pid=1, **ended)
children = [(2, "python -c x", 9)] if rank.returncode == 0 else []
report = failure_report([end], host="h", oom_kills=oom_kills() - before, killed_children=children)
print(oom_kills() - before, report.exit_code)
print(report.termination_message())
"""


@pytest.fixture
def limited():
    """A cgroup with a memory limit, of version 1 or 2."""
    reason = "no cgroup of memory"
    for parent in folders("/", "memory"):
        folder = Path(parent) / f"report-{os.getpid()}"
        for file in ("memory.max", "memory.limit_in_bytes"):
            try:
                folder.mkdir()
                (folder / file).write_text(str(LIMIT))
            except OSError as error:
                reason = error
                with contextlib.suppress(OSError):
                    folder.rmdir()
                continue
            yield folder
            remove(folder)
            return
    pytest.skip(f"no memory cgroup can be made here: {reason}")


def remove(folder):
    end = time.monotonic() + 60
    while True:
        try:
            return folder.rmdir()
        except OSError:  # a process that was killed is being taken down
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("what", "kills", "said"),
    [
        ("allocates", 1, "killed by the kernel: memory limit of the container (limit 96 MiB"),
        ("is killed", 0, "killed from outside"),
        ("loses a child", 1, "although all ranks ended with 0"),
    ],
)
def test_kills_are_told_apart(limited, tmp_path, what, kills, said):
    script = tmp_path / "launcher.py"
    script.write_text(LAUNCHER)
    run = subprocess.run(
        [sys.executable, str(script), str(limited), what],
        env=environ(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    first, _, message = run.stdout.partition("\n")
    assert first == f"{kills} 137"
    assert said in message
    assert ("memory limit of the container" in message) == bool(kills)
