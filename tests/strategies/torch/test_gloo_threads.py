import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")

from trainkit.strategies.torch.gloo_threads import let_gloo_finish
from trainkit.testing import free_port

PROGRAM = '''
"""A thread of gloo drops a collective that was started in a backward pass, and takes long."""
import contextvars, hashlib, threading
import torch
import torch.distributed as dist
import trainkit

held = contextvars.ContextVar("held")
letting_go = threading.Event()

class Slow:
    def __del__(self):
        letting_go.set()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000)
        print("let go", flush=True)

class Reducing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x
    @staticmethod
    def backward(ctx, gradient):
        dist.all_reduce(torch.ones(3), async_op=True)  # only gloo's thread keeps it
        return gradient

def main(ctx):
    global group
    group = dist.group.WORLD  # as a model of DistributedDataParallel keeps it
    ctx.all_reduce(1)
    if ctx.rank == 1:
        ctx.barrier()  # so that rank 0's collective has to wait for it
    token = held.set(Slow())
    Reducing.apply(torch.ones(3, requires_grad=True)).sum().backward()
    held.reset(token)
    if ctx.rank == 0:
        ctx.barrier()
    letting_go.wait()

trainkit.run(main, strategy="ddp")
print("left", flush=True)
'''


def test_a_rank_ends_with_its_own_code_though_gloo_is_still_busy(tmp_path):
    """By the interpreter's teardown, which a fork from a nursery does not go through."""
    (tmp_path / "program.py").write_text(PROGRAM)
    kept = {k: os.environ[k] for k in ("PATH", "HOME", "PYTHONPATH") if k in os.environ}
    port = str(free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, "program.py"],
            cwd=tmp_path,
            env={
                **kept,
                "OMP_NUM_THREADS": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "RANK": str(rank),
                "WORLD_SIZE": "2",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        shown = [rank.communicate(timeout=120)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(shown)
    assert all("let go" in text.partition("left")[0] for text in shown)


def test_where_gloo_has_no_threads_nothing_is_waited_for():
    let_gloo_finish()
