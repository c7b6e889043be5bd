import logging

import pytest

from trainkit.errors import EnvironmentFaultError

torch = pytest.importorskip("torch")

from trainkit.strategies.torch.device import choose_device  # noqa: E402


@pytest.fixture
def gpus(monkeypatch):
    def show(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return show


def test_each_rank_has_the_gpu_of_its_number(gpus):
    gpus(4)
    assert [choose_device(rank, 4, environ={}).index for rank in range(4)] == [0, 1, 2, 3]


def test_no_gpu_and_none_asked_for_is_the_cpu(gpus):
    gpus(0)
    assert choose_device(0, 1, environ={}).type == "cpu"


@pytest.mark.parametrize(
    ("request_", "environ", "names"),
    [
        ("cuda", {}, "TRAINKIT_DEVICE=cuda"),
        ("auto", {"PET_NPROC_PER_NODE": "gpu"}, "PET_NPROC_PER_NODE=gpu"),
        ("auto", {"CUDA_VISIBLE_DEVICES": "0"}, "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_gpu_that_was_asked_for_is_never_silently_the_cpu(gpus, request_, environ, names):
    gpus(0)
    with pytest.raises(EnvironmentFaultError, match=names):
        choose_device(0, 1, request=request_, environ=environ)


def test_a_gpu_that_the_driver_shows_is_never_silently_the_cpu(gpus, monkeypatch):
    gpus(0)
    monkeypatch.setattr("trainkit.strategies.torch.device.visible_gpu_count", lambda: 4)
    with pytest.raises(EnvironmentFaultError, match="4 visible on this host"):
        choose_device(0, 4, environ={})
    assert choose_device(0, 4, request="cpu", environ={}).type == "cpu"


def test_the_cpu_may_be_asked_for_where_there_are_gpus(gpus):
    gpus(2)
    assert choose_device(0, 1, request="cpu", environ={}).type == "cpu"


def test_more_ranks_than_gpus_is_an_error_with_both_numbers(gpus):
    gpus(2)
    with pytest.raises(EnvironmentFaultError, match=r"local rank 2.*shows 2.*runs 3 ranks"):
        choose_device(2, 3, environ={})


def test_one_shown_device_each_is_index_0(gpus):
    gpus(1)
    assert choose_device(3, 4, environ={"CUDA_VISIBLE_DEVICES": "3"}).index == 0


def test_idle_gpus_are_named_once(gpus, caplog):
    gpus(4)
    with caplog.at_level(logging.WARNING):
        choose_device(0, 2, environ={})
        choose_device(1, 2, environ={})
    assert len(caplog.records) == 1
    assert "2 of 4 granted GPUs stay idle (cuda:2, cuda:3)" in caplog.text
