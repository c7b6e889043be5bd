"""``run`` and ``init`` in real ranks, which are forked from one preloaded parent."""

import json
from pathlib import Path

import pytest

from trainkit.testing import run_ranks

pytest.importorskip("torch")

PROGRAMS = Path(__file__).with_name("programs.py")
PRELOAD = ("torch", "torch._dynamo")


def ranks(n, program, *args, call="call", **options):
    options.setdefault("timeout", 120)
    kwargs = options.pop("kwargs", {})
    return run_ranks(
        f"{PROGRAMS}:{call}", n, program, *args, kwargs=kwargs, preload=PRELOAD, **options
    )


@pytest.mark.parametrize("n", [1, 2, 3])
def test_all_ranks_end_with_the_same_weights(n):
    values = [r.value for r in ranks(n, "learns", kwargs={"seed": 1})]
    assert [v["rank"] for v in values] == list(range(n))
    assert {v["world_size"] for v in values} == {n}
    assert all(v["weights"] == values[0]["weights"] for v in values)


def test_init_gives_the_same_context():
    by_run = [r.value for r in ranks(2, "learns", kwargs={"seed": 1})]
    by_init = run_ranks(
        f"{PROGRAMS}:call_init", 2, kwargs={"seed": 1}, preload=PRELOAD, timeout=120
    )
    assert [r.value for r in by_init] == by_run


def test_collectives():
    first, second = (r.value for r in ranks(2, "collectives"))
    assert first["mean"] == second["mean"] == [0.5] * 3
    assert second["unchanged"] == [1.0] * 3
    assert (first["sum"], first["max"]) == (3, 1.0)
    assert first["mean_of_ints"] == 1.5
    assert first["large"] == 2**54 + 1
    assert first["grad"] is False
    assert first["object"] == {"from": 1}
    assert (first["items"], second["items"]) == ([0, 2, 4], [1, 3])


def test_no_sync_keeps_gradients_local_until_the_last_micro_batch():
    first, second = (r.value for r in ranks(2, "accumulates"))
    (_, synced_total), (local, total) = first
    assert local == [1.0] * 4  # rank 0's own
    assert second[1][0] == [2.0] * 4  # rank 1's own
    assert total == second[1][1]
    assert total == pytest.approx([3.0] * 4)  # the mean of both ranks' sums
    assert synced_total == pytest.approx([3.0] * 4)


def test_an_error_in_one_rank_is_70_there_and_138_for_the_rank_that_lost_its_peer(tmp_path):
    error_files = [{"TORCHELASTIC_ERROR_FILE": str(tmp_path / f"{rank}.json")} for rank in (0, 1)]
    results = run_ranks(
        f"{PROGRAMS}:call",
        2,
        "raises_on_rank_1",
        env=[{**topology(rank), **error_files[rank]} for rank in (0, 1)],
        preload=PRELOAD,
        check=False,
        timeout=120,
    )
    assert [r.exit_code for r in results] == [138, 70]
    assert "ValueError: bad batch" in results[1].stderr
    record = json.loads((tmp_path / "1.json").read_text())
    assert record["message"]["message"] == "ValueError: bad batch"


def topology(rank, port=[]):  # noqa: B006 - one port for the ranks of a test
    from trainkit.testing import free_port

    if rank == 0:
        port[:] = [free_port()]
    return {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port[0]),
    }


def test_a_seed_gives_rank_r_seed_plus_r():
    alone = [ranks(1, "seeds", kwargs={"seed": seed})[0].value for seed in (5, 6)]
    together = [r.value for r in ranks(2, "seeds", kwargs={"seed": 5})]
    assert together == alone


def test_leaving_with_code_0_is_a_normal_end():
    assert [r.exit_code for r in ranks(2, "leaves_early")] == [0, 0]


def test_nobody_hangs_up_on_a_rank_that_still_connects(tmp_path):
    program = f"{PROGRAMS}:call_while_rank_0_still_connects"
    first, _ = run_ranks(program, 2, str(tmp_path), preload=PRELOAD, timeout=120)
    assert first.value == [True]


@pytest.mark.parametrize(
    ("kwargs", "environ", "code", "words"),
    [
        ({"strategy": "dpp"}, {}, 2, "'dpp' is not known"),
        ({"strategy": "single"}, {"WORLD_SIZE": "2"}, 78, "train 2 times alone"),
        ({"precision": "fp8"}, {}, 2, "'fp8' is not known"),
        ({}, {"TRAINKIT_TIMEOUT": "soon"}, 2, "TRAINKIT_TIMEOUT='soon'"),
        ({}, {"WORLD_SIZE": "many"}, 78, "WORLD_SIZE"),
        ({}, {"TRAINKIT_DEVICE": "cuda"}, 78, "TRAINKIT_DEVICE=cuda"),
    ],
)
def test_what_cannot_work_is_one_message_without_a_traceback(kwargs, environ, code, words):
    base = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    (result,) = run_ranks(
        f"{PROGRAMS}:call",
        1,
        "learns",
        kwargs=kwargs,
        env=[{**base, **environ}],
        preload=PRELOAD,
        check=False,
        timeout=120,
    )
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_init_where_ranks_are_still_to_be_started_says_how_to_start_them():
    environ = {
        "PET_NNODES": "1",
        "PET_NPROC_PER_NODE": "2",
        "PET_NODE_RANK": "0",
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": "29500",
    }
    (result,) = run_ranks(
        f"{PROGRAMS}:call_init", 1, env=[environ], preload=PRELOAD, check=False, timeout=120
    )
    assert result.exit_code != 0
    assert "stands for 2 ranks that are still to be started" in result.stderr
    assert "torchrun" in result.stderr
