"""A chief, a worker and two parameter servers, each a process: stopped, begun anew, the same."""

import contextlib
import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trainkit.testing import free_port

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("needs tensorflow-cpu: trainkit[tensorflow-cpu]", allow_module_level=True)

PROGRAM = Path(__file__).with_name("cluster.py")
STEPS = 60
SERVERS = (("worker", 0), ("ps", 0), ("ps", 1))


class Process:
    """One process of a cluster, whose output is read with a deadline."""

    def __init__(self, arguments, variables, log):
        with log.open("wb") as file:
            self.popen = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={
                    **os.environ,
                    "TF_CPP_MIN_LOG_LEVEL": "2",
                    "CUDA_VISIBLE_DEVICES": "",
                    **variables,
                },
            )
        self._log = log
        self._rest = b""

    def told(self, key):
        """The next message that has ``key``."""
        while True:
            line, found, rest = self._rest.partition(b"\n")
            if found:
                self._rest = rest
                message = json.loads(line)
                if key in message:
                    return message
                continue
            ready = select.select([self.popen.stdout], [], [], 120)[0]
            data = os.read(self.popen.stdout.fileno(), 1 << 16) if ready else b""
            if not data:
                text = self._log.read_text(errors="replace")[-3000:]
                pytest.fail(f"waited for {key!r}; {'it ended' if ready else 'it hangs'}:\n{text}")
            self._rest += data

    def rest(self):
        """All messages that are left of one that has ended."""
        return [json.loads(line) for line in (self._rest + self.popen.stdout.read()).splitlines()]

    def end(self):
        self.popen.kill()
        self.popen.wait()
        self.popen.stdin.close()
        self.popen.stdout.close()


def hidden(folder):
    """What to begin a command with, so that it does not see into ``folder``, as on another host."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return []
    command = [unshare, "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(folder)]
    works = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    return command if works else []


@contextlib.contextmanager
def cluster(folder, start):
    """A started cluster; gives its chief."""
    addresses = {"chief": [f"127.0.0.1:{free_port()}"]}
    for role, _ in SERVERS:
        addresses.setdefault(role, []).append(f"127.0.0.1:{free_port()}")
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    (scratch / "seen").touch()
    arguments = [sys.executable, str(PROGRAM), str(folder / "run"), str(scratch), str(STEPS), start]
    before = hidden(scratch)
    processes = []

    def begin(role, index, command):
        config = {"cluster": addresses, "task": {"type": role, "index": index}}
        log = folder / f"{start}-{role}-{index}.log"
        processes.append(Process(command, {"TF_CONFIG": json.dumps(config)}, log))
        return processes[-1]

    try:
        servers = [begin(role, index, [*before, *arguments]) for role, index in SERVERS]
        for server in servers:
            assert server.told("sees")["sees"] == ([] if before else ["seen"])
        yield begin("chief", 0, arguments)
        # Python may have compiled what TensorFlow makes of functions.
        assert {path.name for path in scratch.iterdir()} - {"__pycache__"} == {"seen"}
    finally:
        for process in processes:
            process.end()


def test_a_stopped_cluster_goes_on_exactly_after_a_restart(tmp_path):
    with cluster(tmp_path, "first") as chief:
        unbroken = chief.told("unbroken")["unbroken"]
        begun = chief.told("restored")
        assert begun["restored"] is None
        assert {place.split("/")[1] for place in begun["places"]} == {"job:ps"}
        while (third := chief.told("step"))["step"] < 3:
            pass
        chief.popen.send_signal(signal.SIGTERM)
        chief.popen.stdin.write(b"\n")
        chief.popen.stdin.flush()
        assert chief.popen.wait(timeout=120) == 143
        last = [third, *chief.rest()][-1]
    (folder,) = (tmp_path / "run").glob("step-*")
    assert int(folder.name[5:15]) == last["step"] < STEPS
    files = {path.name for path in (folder / "tensorflow").iterdir()}
    assert len(files) == 3 + 1  # of each parameter server, of the chief, and their index
    with cluster(tmp_path, "second") as chief:
        restored = chief.told("restored")
        assert (restored["restored"], restored["digest"]) == (last["step"], last["digest"])
        assert chief.told("step")["step"] == last["step"] + 1
        assert chief.told("done")["done"] == unbroken
        assert chief.popen.wait(timeout=120) == 0
