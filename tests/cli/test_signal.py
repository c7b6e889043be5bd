"""``trainkit signal``, with a launcher behind a shell that passes nothing on."""

import os
import subprocess
import sys

import pytest

SIGNAL = [sys.executable, "-m", "trainkit", "signal"]


@pytest.mark.skipif(os.geteuid() != 0, reason="a container of its own (unshare) needs root")
def test_a_launcher_behind_a_shell(tmp_path):
    """In a container of its own, or it would reach launchers of other tests."""
    (tmp_path / "train.py").write_text(
        "import time\nopen('ready', 'w').close()\ntime.sleep(1000)\n"
    )
    trainkit = f"{sys.executable} -m trainkit"
    (tmp_path / "pod.sh").write_text(
        f"sh -c '{trainkit} launch train.py; echo $? > code' &\n"
        "until [ -e ready ]; do sleep 0.1; done\n"
        f"{trainkit} signal TERM --wait 60 > sent\n"
        "echo $? >> sent\n"
        "wait\n"
    )
    pod = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "pod.sh"]
    subprocess.run(pod, cwd=tmp_path, check=True, timeout=200)
    first, code = (tmp_path / "sent").read_text().splitlines()
    assert first.startswith("sent SIGTERM to process ")
    assert code == "0"
    assert (tmp_path / "code").read_text() == "143\n"


@pytest.mark.parametrize("text", ["NOPE", "999"])
def test_no_signal(text):
    done = subprocess.run([*SIGNAL, text], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
