"""Tensors of every kind come back bit for bit."""

import pytest
import torch

from trainkit.checkpoint import CheckpointManager
from trainkit.errors import EnvironmentFaultError, UsageError

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16,
    torch.uint32, torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def round_trip(folder, value):
    CheckpointManager(folder, {"it": {"value": value}}).save(1)
    CheckpointManager(folder, {"it": (back := {})}).restore_latest()
    return back["value"]


def bits(tensor):
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def test_all_element_types(tmp_path):
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES}
    back = round_trip(tmp_path, tensors)
    for dtype in DTYPES:
        assert back[str(dtype)].dtype is dtype
        assert bits(back[str(dtype)]) == bits(tensors[str(dtype)])


def test_all_shapes_and_strides(tmp_path):
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "0-dim": torch.tensor(1.5, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 3),
        "transposed": base.permute(2, 0, 1),
        "expanded": torch.ones(1).expand(5),
        "strided": base[:, ::2, 1],
        "conjugated": torch.tensor([1 + 2j], dtype=torch.complex64).conj(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "grad": (torch.ones(2, requires_grad=True) * 2),
        "channels last": torch.ones(1, 2, 3, 4).to(memory_format=torch.channels_last),
    }
    back = round_trip(tmp_path, tensors)
    for name, tensor in tensors.items():
        assert back[name].shape == tensor.shape, name
        assert torch.equal(back[name], tensor.detach()), name
        assert not back[name].requires_grad


def test_what_it_cannot_hold_is_named_by_its_place(tmp_path):
    for value, words in [
        (torch.ones(2, dtype=torch.complex128), "torch.complex128"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.ones(2, device="meta"), "on meta"),
    ]:
        with pytest.raises(UsageError, match=rf"it\.value\[0\] is .*{words}"):
            CheckpointManager(tmp_path, {"it": {"value": [value]}}).save(1)


def test_a_tensor_entry_is_filled_in_place(tmp_path):
    CheckpointManager(tmp_path, {"t": torch.arange(3.0)}).save(1)
    target = torch.zeros(3, requires_grad=True)
    CheckpointManager(tmp_path, {"t": target}).restore_latest()
    assert torch.equal(target.detach(), torch.arange(3.0))
    with pytest.raises(EnvironmentFaultError, match=r"expects a tensor of shape \(4,\)"):
        CheckpointManager(tmp_path, {"t": torch.zeros(4)}).restore_latest()


def test_torchs_generator_goes_on_where_it_was(tmp_path):
    manager = CheckpointManager(tmp_path, {})
    manager.save(1, blocking=True)
    expected = torch.rand(3)
    torch.manual_seed(99)
    CheckpointManager(tmp_path, {}).restore_latest()
    assert torch.equal(torch.rand(3), expected)
