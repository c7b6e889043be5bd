"""The arena under a GPU's own hand."""

import pytest

torch = pytest.importorskip("torch")

from trainkit.checkpoint.save.arena import Arena  # noqa: E402
from trainkit.checkpoint.save.torch import copy_together, current_gpu, pin  # noqa: E402
from trainkit.testing import requires_cuda  # noqa: E402


@pytest.fixture
def arena():
    it = Arena()
    it.reserve(1 << 20)
    yield it
    it.close()


def test_without_a_gpu_nothing_is_pinned(arena):
    values = torch.arange(1000.0)
    copy_together(arena, [(64, values)])
    with arena.view(64, 4000) as view:
        assert bytes(view) == values.numpy().tobytes()
    assert arena.unpin is None
    assert current_gpu() is None


@pytest.mark.gpu
@requires_cuda(1)
def test_a_gpu_writes_to_it(arena):
    values = torch.arange(100_000, device="cuda", dtype=torch.float32) + 1
    pin(arena, current_gpu())
    assert torch.frombuffer(arena.memory, dtype=torch.uint8).is_pinned()
    copy_together(arena, [(0, values), (500_000, values.cpu())])
    expected = values.cpu().numpy().tobytes()
    for begin in (0, 500_000):
        with arena.view(begin, 400_000) as view:
            assert bytes(view) == expected
    arena.reserve(1 << 22)  # it grows, and is pinned again
    copy_together(arena, [(0, values)])
    assert arena.unpin is not None
