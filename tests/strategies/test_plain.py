"""Ranks without a framework, each in an interpreter of its own."""

import json
import os
import signal
import subprocess
import sys

import pytest

from trainkit.testing import free_port

PROGRAM = """
import json, sys
import trainkit

def main(ctx):
    ctx.barrier("the start", timeout=60)
    found = {
        "rank": ctx.rank,
        "sum": ctx.all_reduce(ctx.rank + 1, "sum"),
        "mean": ctx.all_reduce(ctx.rank, "mean"),
        "object": ctx.broadcast_object({"from": ctx.rank}, src=1),
        "items": ctx.shard(range(5)),
        "torch": "torch" in sys.modules,
    }
    print(json.dumps(found), flush=True)
    if "wait" in sys.argv:
        sys.stdin.read()
        ctx.barrier("the end", timeout=60)

trainkit.run(main)
"""


@pytest.fixture
def start(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(PROGRAM)
    started = []

    def start(rank, size, port, *words):
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("PET_", "TRAINKIT_"))}
        meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        process = subprocess.Popen(
            [sys.executable, str(script), *words],
            env={**environ, **meeting, "RANK": str(rank), "WORLD_SIZE": str(size)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_ranks_meet_and_gather_without_torch(start):
    port = free_port()
    ranks = [start(rank, 3, port) for rank in range(3)]
    ends = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0], ends
    found = [json.loads(out) for out, _ in ends]
    assert [one["items"] for one in found] == [[0, 3], [1, 4], [2]]
    for rank, one in enumerate(found):
        del one["items"]
        assert one == {"rank": rank, "sum": 6, "mean": 1.0, "object": {"from": 1}, "torch": False}


def test_rank_0_killed_ends_the_others_as_lost_peers_do(start):
    port = free_port()
    first, second = (start(rank, 2, port, "wait") for rank in range(2))
    assert first.stdout.readline()
    assert second.stdout.readline()
    first.send_signal(signal.SIGKILL)
    _, said = second.communicate("", timeout=120)
    assert second.returncode == 138, said
    assert "the store that the ranks share" in said
    assert "Traceback" not in said
