"""What only a GPU can show; skipped with the reason where there is none."""

from pathlib import Path

import pytest

from trainkit.testing import requires_cuda, run_ranks

pytest.importorskip("torch")

PROGRAMS = Path(__file__).with_name("cuda_programs.py")
pytestmark = [pytest.mark.gpu, requires_cuda(1)]


def one_rank(program, **kwargs):
    (result,) = run_ranks(f"{PROGRAMS}:{program}", 1, kwargs=kwargs, timeout=280)
    return result.value


def test_ddp_on_nccl_at_world_size_1():
    value = one_rank("trains", strategy="torch:ddp")
    assert value["device"] == "cuda:0"
    assert "nccl" in value["backend"]
    assert value["last_loss"] < value["first_loss"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fsdp_on_nccl_at_world_size_1(precision):
    value = one_rank("trains", strategy="torch:fsdp", precision=precision, clip=1.0)
    assert value["device"] == "cuda:0"
    assert "nccl" in value["backend"]
    assert value["inner_dtype"] == {"fp32": "torch.float32", "bf16": "torch.bfloat16"}[precision]
    assert value["parameter"] == "DTensor of torch.float32 on cuda:0"
    assert value["last_loss"] < value["first_loss"]


def test_fsdp_moves_a_model_block_by_block():
    """A model of 16 blocks never lies whole on the device twice, nor beside its parts."""
    value = one_rank("moves", strategy="torch:fsdp")
    assert value["peak"] < 1.3 * value["whole"]


def test_bf16_computes_in_bf16():
    value = one_rank("trains", strategy="torch:single", precision="bf16")
    assert value["inner_dtype"] == "torch.bfloat16"
    assert value["last_loss"] < value["first_loss"]


def test_compile():
    value = one_rank("trains", strategy="torch:single", compile_model=True)
    assert value["last_loss"] < value["first_loss"]
