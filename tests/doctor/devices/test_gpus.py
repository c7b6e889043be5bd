"""What is said of GPUs; on a machine that has some, of real ones."""

import pytest

from trainkit.doctor import Status
from trainkit.doctor.devices import driver, gpus, kernel, presence
from trainkit.doctor.devices.presence import NO_GPU
from trainkit.resources.gpus import visible_gpu_count
from trainkit.testing import requires_cuda, requires_module

GPU_CHECKS = ("gpu", "gpu-driver", "gpu-health", "gpu-kernel", "nccl")
only = [word for name in GPU_CHECKS for word in ("--only", name)]
no_gpu = pytest.mark.skipif(visible_gpu_count() > 0, reason="this machine has a GPU")


@no_gpu
def test_no_gpu_was_granted(doctor):
    told = doctor(*only)
    assert told.code == 0
    assert [one["check"] for one in told.findings] == list(GPU_CHECKS)
    for found in told.findings:
        assert (found["status"], found["found"]) == ("not_checked", NO_GPU)


@no_gpu
@pytest.mark.parametrize(
    "variables",
    [
        {"TRAINKIT_DEVICE": "cuda"},
        {"CUDA_VISIBLE_DEVICES": "0"},
        {"NVIDIA_VISIBLE_DEVICES": "GPU-8d3f0000-0000-0000-0000-000000000000"},
    ],
)
def test_a_gpu_was_granted_and_is_not_there(doctor, variables):
    told = doctor("--only", "gpu", **variables)
    assert told.code == 78
    assert next(iter(variables)) in told.of("gpu")["found"]
    assert "nvidia-smi" in told.of("gpu")["advice"]


@pytest.mark.parametrize(
    ("environ", "visible", "device", "status"),
    [
        ({}, 0, "auto", Status.NOT_CHECKED),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, 0, "auto", Status.NOT_CHECKED),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0, "auto", Status.NOT_CHECKED),
        ({"PET_NPROC_PER_NODE": "gpu"}, 0, "auto", Status.BROKEN),
        ({}, 0, "cuda", Status.BROKEN),
        ({"CUDA_VISIBLE_DEVICES": "0"}, 0, "cpu", Status.NOT_CHECKED),
        ({}, 2, "auto", Status.OK),
        ({}, 2, "cpu", Status.WARNING),
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, 2, "auto", Status.OK),
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, 1, "auto", Status.WARNING),
        (
            {"NVIDIA_VISIBLE_DEVICES": "GPU-a,GPU-b", "CUDA_VISIBLE_DEVICES": "0"},
            1,
            "auto",
            Status.OK,
        ),
    ],
)
def test_granted_and_visible(environ, visible, device, status):
    assert gpus.judge(environ, visible, device).status is status


@pytest.mark.parametrize(
    ("known", "torch", "status"),
    [
        ((13, 0), ("2.14.1", "13.0"), Status.OK),
        ((13, 1), ("2.14.1", "13.0"), Status.OK),
        ((12, 8), ("2.14.1", "12.9"), Status.WARNING),
        ((12, 8), ("2.14.1", "13.0"), Status.BROKEN),
        ((13, 0), ("2.14.1+cpu", None), Status.BROKEN),
        ((13, 0), None, Status.OK),
    ],
)
def test_driver_against_cuda(known, torch, status):
    found = driver.judge(known, "580.1", torch)
    assert found.status is status
    assert bool(found.advice) is (status is not Status.OK)


@requires_module("torch")
def test_the_version_of_torch_without_importing_it():
    import torch

    folder = presence.torch_folder()
    assert presence.torch_version(folder) == (torch.__version__, torch.version.cuda)


def test_what_a_kernel_says():
    answer = {"name": "H200", "flops": 7.9e14, "capability": [9, 0]}
    assert "790.0 TFLOP/s" in kernel.judge(0, answer).found
    broken = kernel.judge(3, {"error": "it did not end within 100 s", "hung": True})
    assert (broken.status, broken.found) == (
        Status.BROKEN,
        "cuda:3: it did not end within 100 s",
    )
    assert kernel.judge(1, {"skipped": "MIG"}).status is Status.NOT_CHECKED


@pytest.mark.gpu
@requires_cuda()
def test_a_real_gpu(doctor):
    told = doctor(*only)
    assert told.code == 0, told
    kernels = [one for one in told.findings if one["check"] == "gpu-kernel"]
    assert len(kernels) == visible_gpu_count()
    assert all(one["values"]["flops"] > 1e12 for one in kernels)
    assert told.of("nccl")["status"] == "ok"
    assert told.of("gpu-driver")["status"] in ("ok", "warning")


@pytest.mark.gpu
@requires_cuda()
def test_nccl_among_real_gpus(doctor):
    found = doctor("--only", "all-reduce").of("all-reduce")
    assert found["status"] in ("ok", "warning")
    assert found["values"]["backend"] == "nccl"
