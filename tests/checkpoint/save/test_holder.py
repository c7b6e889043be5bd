"""Telling whether another process is alive, without asking it."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from trainkit.checkpoint.save import holder as module
from trainkit.checkpoint.save.holder import Holder

HERE = Holder.here(silence=60.0)


@pytest.fixture
def other():
    """A process that sleeps, and how it describes itself."""
    code = (
        "import sys, time\n"
        "from trainkit.checkpoint.save.holder import Holder\n"
        "sys.stdout.buffer.write(Holder.here().to_bytes() + b'\\n')\n"
        "sys.stdout.flush()\n"
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            yield process, Holder.from_bytes(process.stdout.readline())
        finally:
            process.kill()


def test_a_claim_says_who_and_can_be_read_back():
    assert Holder.from_bytes(HERE.to_bytes()) == HERE
    assert HERE.to_bytes() != HERE.to_bytes()
    assert HERE.is_this_process()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", HERE.to_bytes()[:-30], b"\xff\xfe"])
def test_a_claim_that_was_cut_off_is_nobody(data):
    assert Holder.from_bytes(data) is None


def test_a_process_of_this_host_is_alive_until_it_is_killed(other):
    process, holder = other
    assert holder.fate() == "alive"
    assert not holder.is_this_process()
    os.kill(process.pid, signal.SIGSTOP)
    assert holder.fate() == "alive"
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert holder.fate() == "dead"  # a zombie, which its parent has not waited for
    process.wait()
    assert holder.fate() == "dead"


def test_a_pid_that_was_given_to_another_process_is_not_the_holder(other):
    _, holder = other
    assert replace(holder, started=holder.started - 1).fate() == "dead"


def test_from_another_host_or_pid_namespace_nobody_can_tell(other):
    _, holder = other
    assert replace(holder, boot="another").fate() == "unknown"
    assert replace(holder, pid_namespace="pid:[1]").fate() == "unknown"
    assert replace(holder, boot="another", pid=1).fate() == "unknown"


def test_a_container_that_was_started_again_knows_its_former_life(monkeypatch):
    monkeypatch.setattr(module, "_container", lambda: "this pod's worker")
    before = replace(Holder.here(), pid_namespace="pid:[1]")
    assert before.fate() == "dead"
    assert replace(before, container="this pod's sidecar").fate() == "unknown"
    assert replace(before, container="").fate() == "unknown"


def test_kubernetes_names_pod_and_container_in_the_mounts(monkeypatch):
    """Lines as containerd and CRI-O make them; the last part changes with every start."""
    line = (
        "1234 1200 259:1 /var/lib/kubelet/pods/0f3a5a52-6a0c-4b55-9c5e-0b5a8a3f3c11/containers/"
        "{}/{} /dev/termination-log rw,relatime - ext4 /dev/root rw"
    )
    names = []
    for container, start in (("pytorch", "1f"), ("pytorch", "2e"), ("istio", "3d")):
        text = "1 0 0:1 / / rw - overlay overlay rw\n" + line.format(container, start)
        monkeypatch.setattr(module, "_text", lambda path, text=text: text)
        names.append(module._container())
    assert names[0] == names[1] != names[2]
    assert all(names)


@pytest.mark.parametrize(
    ("seconds", "words"), [(-5, "0 s"), (42, "42 s"), (150, "2 min"), (7300, "2 h 1 min")]
)
def test_its_age_is_for_people(seconds, words):
    holder = replace(HERE, unix_time=time.time() - seconds)
    assert holder.age() == words
    assert f"process {os.getpid()} on host " in str(holder)
