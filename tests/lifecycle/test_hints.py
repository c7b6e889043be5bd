"""Hints, from words that torch, NCCL and the kernel really print."""

import signal
import subprocess
import sys
import tempfile

import pytest

from trainkit.config import environ
from trainkit.lifecycle.hints import (
    describe_signal,
    hint_of_exit_code,
    hint_of_signal,
    hint_of_text,
)
from trainkit.testing import requires_module, requires_root


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total", "GPU's memory"),
        ("torch.OutOfMemoryError: HIP out of memory.", "GPU's memory"),
        ("CUDA error: uncorrectable ECC error encountered", "another node"),
        ("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus", "another node"),
        ("DataLoader worker (pid 1) is killed by signal: Killed. ", "memory of the pod"),
        (
            "DataLoader worker (pid 1) is killed by signal: Bus error. It is possible that",
            "/dev/shm",
        ),
        (
            "Error while creating shared memory segment /dev/shm/nccl-X (size 9), error: "
            "No space left on device (28)",
            "/dev/shm",
        ),
        ("unable to allocate shared memory(shm) for file </torch_1>: No space left", "/dev/shm"),
        ("[Errno 28] No space left on device: '/checkpoints/x'", "disk is full"),
        ("[Errno 24] Too many open files", "ulimit -n"),
        ("MemoryError: ", "memory of the pod"),
        ("[Errno 98] Address already in use", "MASTER_PORT"),
        ("socket.gaierror: [Errno -2] Name or service not known", "MASTER_ADDR"),
        ("RendezvousConnectionError: The connection to the C10d store has failed", "MASTER_ADDR"),
        ("CUDA error: invalid device ordinal", "nvidia.com/gpu"),
        ("CUDA error: an illegal memory access was encountered", "CUDA_LAUNCH_BLOCKING"),
        ("ncclUnhandledCudaError: unhandled cuda error, NCCL version 2.27", "NCCL_DEBUG"),
        ("Watchdog caught collective operation timeout: WorkNCCL(", "did not end in time"),
        ("Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 3b000", "one GPU"),
        ("shapes (3,) and (4,) do not match", None),
        ("the accuracy was 0.5, the max idle time 3", None),
    ],
)
def test_words(text, hint):
    found = hint_of_text(text)
    assert (found == "") if hint is None else (hint in found)


def test_the_hint_for_memory_has_limit_use_and_count():
    hint = hint_of_signal(signal.SIGKILL, oom_kills=2)
    assert "limit" in hint
    assert "2 processes killed for memory" in hint


def test_signals_by_name():
    assert describe_signal(9) == "SIGKILL (9)"
    assert describe_signal(200) == "signal 200"
    assert "PATH" in hint_of_exit_code(127)
    assert hint_of_exit_code(3) == ""


SMALL = """
import sys
from torch.utils.data import DataLoader, Dataset
import torch
from trainkit.lifecycle.causes import hint_for

class Large(Dataset):
    def __len__(self): return 8
    def __getitem__(self, i): return torch.zeros(3, 2048, 1024)

try:
    for _ in DataLoader(Large(), num_workers=2, batch_size=2): pass
except RuntimeError as error:
    print(hint_for(error))
else:
    print("nothing was wrong")
"""


@requires_root()
@requires_module("torch")
def test_shared_memory_that_is_really_too_small():
    """B066: a mount namespace with 16 MiB of /dev/shm, as small as a pod's."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(SMALL)
        script.flush()
        mount = 'mount -t tmpfs -o size=16m tmpfs /dev/shm && exec "$@"'
        probe = subprocess.run(
            ["unshare", "--mount", "sh", "-c", mount, "sh", "true"], capture_output=True, text=True
        )
        if probe.returncode != 0:
            pytest.skip(f"no /dev/shm can be mounted here: {probe.stderr.strip()}")
        run = subprocess.run(
            ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, script.name],
            env={**environ(), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert "(16 MiB" in run.stdout, (run.stdout, run.stderr)
    assert "emptyDir: {medium: Memory}" in run.stdout
