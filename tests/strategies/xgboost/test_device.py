import logging

import pytest

from trainkit.config import environ
from trainkit.errors import DependencyError, EnvironmentFaultError

xgboost = pytest.importorskip("xgboost", reason="needs xgboost-cpu: trainkit[xgboost-cpu]")

from trainkit.strategies.xgboost import device  # noqa: E402 - needs xgboost

WITH_CUDA = {"USE_CUDA": True, "USE_NCCL": True, "USE_DLOPEN_NCCL": False}


@pytest.fixture
def gpus(monkeypatch):
    """A host with GPUs, as far as NVML and the build tell, and no variable that speaks of them."""
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "PET_NPROC_PER_NODE"):
        monkeypatch.setenv(name, "")  # so that it is as before in the end
        monkeypatch.delenv(name)

    def show(count, build=None, **variables):
        monkeypatch.setattr(device, "visible_gpu_count", lambda: count)
        if build is not None:
            monkeypatch.setattr(xgboost, "build_info", lambda: build)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return show


def choose(local_rank, local_world_size, world_size=2, request="auto"):
    return device.choose_device(
        local_rank, local_world_size, world_size=world_size, request=request
    )


@pytest.mark.parametrize(
    ("shown", "seen"),
    [(None, ["0", "1"]), ("4,6", ["4", "6"]), ("GPU-a, GPU-b", ["GPU-a", "GPU-b"])],
)
def test_each_rank_sees_the_gpu_of_its_number_alone(gpus, monkeypatch, shown, seen):
    for rank, own in enumerate(seen):
        gpus(2, WITH_CUDA)
        if shown is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        assert choose(rank, 2) == "cuda"
        assert environ()["CUDA_VISIBLE_DEVICES"] == own


def test_a_launcher_that_shows_each_rank_one_device_is_believed(gpus):
    gpus(1, WITH_CUDA, CUDA_VISIBLE_DEVICES="3")
    assert choose(1, 2) == "cuda"
    assert environ()["CUDA_VISIBLE_DEVICES"] == "3"


def test_no_gpu_and_none_asked_for_is_the_cpu(gpus):
    gpus(0)
    assert choose(0, 1) == "cpu"


@pytest.mark.parametrize(
    ("request_", "variables", "names"),
    [
        ("cuda", {}, "TRAINKIT_DEVICE=cuda"),
        ("auto", {"PET_NPROC_PER_NODE": "gpu"}, "PET_NPROC_PER_NODE=gpu"),
        ("auto", {"CUDA_VISIBLE_DEVICES": "0"}, "CUDA_VISIBLE_DEVICES"),
        ("auto", {"NVIDIA_VISIBLE_DEVICES": "GPU-1"}, "NVIDIA_VISIBLE_DEVICES"),
    ],
)
def test_a_gpu_that_was_asked_for_is_never_silently_the_cpu(gpus, request_, variables, names):
    gpus(0, **variables)
    with pytest.raises(EnvironmentFaultError, match=names):
        choose(0, 1, request=request_)


def test_a_build_without_cuda_does_not_leave_gpus_idle(gpus):
    gpus(2)  # the build is the one that is installed: xgboost-cpu
    if xgboost.build_info()["USE_CUDA"]:
        pytest.skip("the XGBoost that is installed is built with CUDA")
    with pytest.raises(DependencyError, match=r"2 GPU\(s\) are visible .* built without CUDA"):
        choose(0, 2)
    assert choose(0, 2, request="cpu") == "cpu"


def test_ranks_on_gpus_need_nccl(gpus, monkeypatch):
    gpus(2, {**WITH_CUDA, "USE_DLOPEN_NCCL": True})
    monkeypatch.setattr(device, "find_spec", lambda name: None)
    monkeypatch.setattr(device.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(DependencyError, match="through NCCL, and there is none"):
        choose(0, 2)
    assert choose(0, 1, world_size=1) == "cuda"


def test_more_ranks_than_gpus_is_an_error_and_fewer_a_warning(gpus, caplog):
    gpus(2, WITH_CUDA)
    with pytest.raises(EnvironmentFaultError, match="local rank 2 has no GPU: this host shows 2"):
        choose(2, 3)
    with caplog.at_level(logging.WARNING):
        assert choose(0, 1) == "cuda"
    assert "1 of 2 granted GPUs stay idle" in caplog.text


@pytest.mark.gpu
def test_a_round_on_the_gpu():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available() or not xgboost.build_info()["USE_CUDA"]:
        pytest.skip("needs a CUDA device, and XGBoost built with CUDA")
    assert choose(0, 1, world_size=1) == "cuda"
    import numpy as np

    rows = np.arange(200, dtype=np.float32).reshape(100, 2)
    data = xgboost.QuantileDMatrix(rows, rows[:, 0] > 90)
    model = xgboost.train({"device": "cuda", "objective": "binary:logistic"}, data, 3)
    assert model.num_boosted_rounds() == 3
