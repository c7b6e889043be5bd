"""The pods of a TFJob as real processes, each with the TF_CONFIG that its operator gives."""

import json
import signal
import time
from pathlib import Path

from tests.distributed.pods import PYTHON, Cluster
from trainkit.testing import free_port

SCRIPT = Path(__file__).with_name("tensorflow_train.py")
WORKERS = [("worker", 0), ("worker", 1)]
CHIEF, PS, EVALUATOR = ("chief", 0), ("ps", 0), ("evaluator", 0)


class Job:
    """The pods of one TFJob. Their output goes to files, which are read while they run."""

    def __init__(self, folder: Path, roles, command=(str(SCRIPT),), variables=None, **settings):
        self.folder, self.command, self.settings = folder, command, settings
        self.variables = variables or {}
        self.addresses = {
            role: [f"localhost:{free_port()}" for _ in range(count)]
            for role, count in roles.items()
        }
        self.running = {}
        self.cluster = Cluster(folder)

    def start(self, *tasks, index=int, listed=True, variables=None, **settings):
        """Start tasks; ``listed`` says whether an evaluator finds itself in its cluster."""
        for role, number in tasks:
            cluster = dict(self.addresses)
            if not listed:
                del cluster["evaluator"]
            config = {"cluster": cluster, "task": {"type": role, "index": index(number)}}
            environ = {
                "TF_CONFIG": json.dumps(config),
                "TF_CPP_MIN_LOG_LEVEL": "2",
                "CUDA_VISIBLE_DEVICES": "",
                "TRAINKIT_CHECKPOINT_DIR": str(self.folder / "checkpoints"),
                "JOB": json.dumps(self.settings | settings),
                **self.variables,
                **(variables or {}),
            }
            self.running[role, number] = self.cluster.start([PYTHON, *self.command], **environ)

    def pod(self, task):
        return self.running[task].process

    def lines(self, task, until):
        """JSON lines of a pod as they come, up to the first one with the key ``until``."""
        found = []
        while not found or until not in found[-1]:
            line = self.pod(task).stdout.readline()
            assert line, f"{task} ended with {self.pod(task).wait()}:\n{self.output(task)}"
            self.running[task].seen = getattr(self.running[task], "seen", "") + line
            if line.startswith("{"):
                found.append(json.loads(line))
        return found

    def read_until(self, task, text):
        while True:
            line = self.pod(task).stdout.readline()
            assert line, f"{task} ended before it said {text!r}"
            self.running[task].seen = getattr(self.running[task], "seen", "") + line
            if text in line:
                return

    def end(self, tasks, code=0, seconds=120):
        """Wait for tasks to end with ``code``; returns the output of the first one."""
        deadline = time.monotonic() + seconds
        for task in tasks:
            found = self.running[task].end(deadline)
            assert found == code, f"{task} ended with {found}, not {code}:\n{self.output(task)}"
        return self.output(tasks[0])

    def output(self, task):
        return getattr(self.running[task], "seen", "") + self.running[task].output

    def kill(self, task, number=signal.SIGKILL):
        self.pod(task).send_signal(number)
        if number == signal.SIGKILL:
            self.pod(task).wait()


def told(output):
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def messages(output):
    return [line for line in output.splitlines() if line.startswith("trainkit: rank 0: ")]
