"""One command line under torchrun and under trainkit launch: the same ranks, the same files."""

import json
import os
import socket
import subprocess
import sys
from collections import Counter

import pytest

from trainkit.testing import requires_module

SCRIPT = """
import json, os, sys, torch.distributed as dist
dist.init_process_group("gloo")
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
    "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_MAX_RESTARTS", "TORCH_NCCL_ASYNC_ERROR_HANDLING")
seen = {name: os.environ.get(name) for name in names}
if "--run-id" in sys.argv:
    seen["id"] = os.environ["TORCHELASTIC_RUN_ID"]
# Each in one write, or the other rank's may come between a line and its end.
sys.stdout.write(json.dumps([seen, sys.argv[1:], __name__]) + "\\n")
sys.stdout.flush()
sys.stderr.write(f"to stderr {dist.get_rank()}\\n")
sys.stderr.flush()
dist.barrier()  # gloo takes a rank that leaves while another still connects for a crash
dist.destroy_process_group()
"""

ONE = ["--standalone", "--nproc-per-node=2"]
CASES = {
    "standalone": (ONE, {}),
    "underscores": (["--standalone", "--nproc_per_node", "2", "--max_restarts=3"], {}),
    "role and interval": ([*ONE, "--role", "trainer", "--monitor-interval", "0.5"], {}),
    "static": (["--nnodes=1", "--node-rank=0", "--nproc-per-node=2", "--master-port={port}"], {}),
    "c10d": (
        [
            *("--nnodes", "1:1", "--nproc-per-node", "2", "--rdzv-backend", "c10d"),
            *("--rdzv-endpoint", "127.0.0.1:{port}", "--rdzv-id", "mine"),
            *("--rdzv-conf", "join_timeout=60,last_call_timeout=1"),
        ],
        {},
    ),
    "variables": (
        [],
        {"PET_STANDALONE": "1", "PET_NPROC_PER_NODE": "2", "PET_MAX_RESTARTS": "1"},
    ),
    "module": ([*ONE, "-m"], {}),
    "no python": ([*ONE, "--no-python", sys.executable], {}),
}
"""Flags, and variables."""
SAMPLE = ("c10d", "static", "variables", "module")
SLOW = pytest.mark.slow


class Run:
    """What a command line printed, and the files that it left."""

    def __init__(self, launcher, flags, program, folder, environ):
        folder.mkdir()
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("TRAINKIT_", "PET_"))}
        self.logs = folder / "logs"
        flags = [flag.format(port=_free_port(), logs=self.logs) for flag in flags]
        # stdin is closed to both: neither must ask
        done = subprocess.run(
            [*launcher, *flags, *program],
            # torchrun leaves its files where temporary ones are
            env=clean | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder)} | environ,
            cwd=folder.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
        )
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    def ranks(self):
        lines = [line[line.index("[{") :] for line in self.out.splitlines() if "[{" in line]
        return sorted((json.loads(line) for line in lines), key=lambda line: line[0]["RANK"])

    def files(self):
        found = {}
        for file in sorted(self.logs.rglob("*.log")):
            text = [
                line
                for line in file.read_text().splitlines()
                if "to stderr" in line or "[{" in line
            ]
            found[str(file.relative_to(next(self.logs.iterdir())))] = Counter(text)
        return found


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


LAUNCHERS = {
    "torchrun": [sys.executable, "-m", "torch.distributed.run"],
    "launch": [sys.executable, "-m", "trainkit", "launch", "--no-prefix"],
}


@pytest.fixture
def both(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)

    def run(flags, *arguments, program="script.py", environ=None):
        return [
            Run(launcher, flags, [program, *arguments], tmp_path / name, environ or {})
            for name, launcher in LAUNCHERS.items()
        ]

    return run


@requires_module("torch")
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in SAMPLE else SLOW) for case in CASES],
)
def test_ranks_see_the_same(both, case):
    flags, environ = CASES[case]
    program = "script" if "-m" in flags else "script.py"
    arguments = ["--run-id"] if case == "c10d" else ["a", "--b"]
    theirs, ours = both(flags, *arguments, program=program, environ=environ)
    assert (theirs.code, ours.code) == (0, 0), theirs.err + ours.err
    assert len(theirs.ranks()) == 2
    assert ours.ranks() == theirs.ranks()


@requires_module("torch")
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(["--log-dir={logs}", "--redirects=3"], marks=SLOW),
        pytest.param(["--log-dir={logs}", "--tee=3"], marks=SLOW),
        ["--log-dir={logs}", "-r", "1", "-t", "0:2,1:3"],
        ["--log-dir={logs}", "--tee", "3", "--local-ranks-filter", "1"],
    ],
    ids=" ".join,
)
def test_output_goes_to_the_same_files(both, flags):
    theirs, ours = both([*ONE, *flags])
    assert (theirs.code, ours.code) == (0, 0), theirs.err + ours.err
    assert theirs.files()
    # Ours keeps a file of every stream where there is a folder; torchrun's are among them.
    assert {path: ours.files().get(path) for path in theirs.files()} == theirs.files()
    for stream in ("out", "err"):
        shown = [
            sorted(
                word
                for word in ("to stderr 0", "to stderr 1", '"RANK": "0"', '"RANK": "1"')
                if word in getattr(one, stream)
            )
            for one in (theirs, ours)
        ]
        assert shown[0] == shown[1], (stream, theirs.err, ours.err)
