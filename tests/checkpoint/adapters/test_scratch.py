"""Local folders of frameworks: gone in the end, whatever the end."""

import gc
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from trainkit.checkpoint.adapters.scratch import Scratch, opened

HOLDER = """
import sys
from trainkit.checkpoint.adapters.scratch import Scratch

scratch = Scratch()
(scratch.path / "data").write_bytes(b"x" * 1000)
print(scratch.path, flush=True)
sys.stdin.readline()
"""


def there():
    return sorted(Path(tempfile.gettempdir()).iterdir())


def test_it_goes_when_told_and_with_its_last_reference():
    scratch = Scratch()
    (scratch.path / "file").write_text("text")
    assert scratch.path.stat().st_mode & 0o777 == 0o700
    scratch.remove()
    scratch.remove()
    assert not there()
    scratch = Scratch()
    path = scratch.path
    del scratch
    gc.collect()
    assert not path.exists()
    assert not there()


@pytest.fixture
def holder():
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_it_goes_at_the_end_of_the_process(holder):
    path = Path(holder.stdout.readline().strip())
    assert (path / "data").exists()
    holder.communicate("end\n", timeout=60)
    assert not there()


def test_what_a_kill_left_goes_with_the_next_one_and_what_is_alive_stays(holder):
    path = Path(holder.stdout.readline().strip())
    Scratch().remove()
    assert (path / "data").exists()
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait(timeout=60)
    assert (path / "data").exists()
    scratch = Scratch()
    assert not path.exists()
    assert len(there()) == 2  # its own, and its lock
    scratch.remove()


def test_a_forked_child_leaves_it_alone():
    scratch = Scratch()
    pid = os.fork()
    if pid == 0:
        try:
            scratch.remove()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert scratch.path.exists()
    scratch.remove()


def test_a_file_outlives_its_folder():
    scratch = Scratch()
    (scratch.path / "file").write_bytes(bytes(range(200)))
    descriptors = set(os.listdir("/proc/self/fd"))
    raw = opened(scratch.path / "file")
    scratch.remove()
    assert not there()
    assert raw.size == 200
    assert raw.read(10, 20) == bytes(range(10, 20))
    assert raw.read(0, 200) == bytes(range(200))
    with pytest.raises(OSError, match="file ends at byte 200, before 300"):
        raw.read(150, 300)
    del raw
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= descriptors


def test_where_none_can_be_made_the_place_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(OSError, match="nowhere"):
        Scratch()
