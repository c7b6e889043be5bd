"""Training over MPI: DDP, FSDP2 and checkpoints of both kinds, on real ranks of mpirun."""

from pathlib import Path

import pytest

from trainkit.errors import ExitCode, StrategyError, UsageError
from trainkit.testing import run_ranks

pytest.importorskip("torch")

PROGRAM = Path(__file__).with_name("training.py")


@pytest.mark.parametrize(
    ("what", "way", "n"),
    [
        ("ddp", "shared", 2),
        ("ddp", "alone", 3),
        ("in_bf16", "shared", 2),
        ("fsdp", "shared", 2),
        ("asynchronous", "shared", 2),
        pytest.param("fsdp", "alone", 3, marks=pytest.mark.slow),
    ],
)
def test_trains_as_one_process_would(mpirun, tmp_path, what, way, n):
    job = mpirun(PROGRAM, what, tmp_path, way, n=n)
    assert job.wait() == 0, job.output
    assert job.output.count("all ok") == n


def test_b108_a_rank_that_works_longer_is_waited_for(mpirun, tmp_path):
    job = mpirun(PROGRAM, "tail", tmp_path, "shared")
    assert job.wait() == 0, job.output
    assert (tmp_path / "tail").read_text() == "done"
    assert job.output.count("all ok") == 2


def test_sparse_gradients_are_refused_when_the_model_is_set_up(mpirun, tmp_path):
    job = mpirun(PROGRAM, "sparse", tmp_path)
    assert job.wait() == ExitCode.ENVIRONMENT, job.output
    assert "sparse=True" in job.output
    assert "Traceback" not in job.output


def test_ranks_of_another_launcher_are_told_to_use_mpirun():
    with pytest.raises(AssertionError, match=r"needs ranks that mpirun started.*torchelastic"):
        run_ranks(f"{PROGRAM}:connect_alone", 2)


def test_one_process_trains_without_mpi(tmp_path):
    (result,) = run_ranks(f"{PROGRAM}:train_alone", 1, str(tmp_path))
    assert result.value == ("ddp", False)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"wire": "fp8"}, "wire='fp8'"), ({"precision": "fp17"}, "")],
)
def test_odd_options_are_named(options, words):
    from trainkit.strategies.torch.mpi import Mpi

    if words:
        with pytest.raises(UsageError, match=words):
            Mpi(**options)
    else:
        Mpi(**options)


def test_an_unknown_transport_is_named():
    from trainkit.strategies.torch.mpi.devices import choose_transport

    with pytest.raises(UsageError, match=r"carrier-pigeon.*cuda-aware"):
        choose_transport("carrier-pigeon", None, None)


def test_reductions_that_mean_nothing_are_named():
    import torch
    import torch.distributed as dist

    from trainkit.strategies.torch.mpi.wire import op_name

    assert op_name(dist.ReduceOp.SUM, torch.float32) == "sum"
    with pytest.raises(StrategyError, match=r"avg means nothing for torch\.int64"):
        op_name(dist.ReduceOp.AVG, torch.int64)
    with pytest.raises(StrategyError, match=r"bxor means nothing for torch\.float32"):
        op_name(dist.ReduceOp.BXOR, torch.float32)
