"""Real kills by the kernel, below a real memory limit: told apart from those by a person."""

import contextlib
import subprocess
import sys
import time
import uuid
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


@contextlib.contextmanager
def limited_to(controller, files, limit):
    """A cgroup of this test's own, of version 1 or 2; skips where none can be made.

    Args:
        controller: ``memory`` or ``cpu``.
        files: names of the limit in versions 2 and 1.
        limit: what is written there.
    """
    reason = f"no cgroup of {controller}"
    for parent in folders("/", controller):
        folder = Path(parent) / f"test-{uuid.uuid4().hex[:8]}"
        for file in files:
            try:
                folder.mkdir()
                (folder / file).write_text(str(limit))
            except OSError as error:
                reason = error
                with contextlib.suppress(OSError):
                    folder.rmdir()
                continue
            try:
                yield folder
            finally:
                remove(folder)
            return
    pytest.skip(f"no cgroup with a limit can be made here: {reason}")


@pytest.fixture
def limited():
    with limited_to("memory", ("memory.max", "memory.limit_in_bytes"), LIMIT) as folder:
        yield folder


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
