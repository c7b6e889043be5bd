"""What is told to be in the arena is there."""

import pytest

from trainkit.checkpoint.format.tensors import TensorSource
from trainkit.checkpoint.save.arena import Arena
from trainkit.checkpoint.save.copying import fill
from trainkit.checkpoint.save.files import FileImage

PAGE = 4096


@pytest.fixture
def arena():
    it = Arena()
    yield it
    it.close()


def told(arena, images, expected):
    """Fill the arena, and hold it against what is expected whenever it is told that bytes are
    there; how many they were each time."""
    found = []

    def tell(filled):
        found.append(filled)
        with arena.view(0, len(expected)) as view:
            assert bytes(view[:filled]) == expected[:filled]

    fill(arena, images, len(expected), tell)
    return found


def test_bytes_of_no_framework_are_told_at_the_end(arena):
    source = TensorSource("U8", (5,), lambda: b"bytes")
    images = [(0, FileImage("a", 9, b"head", [source])), (PAGE, FileImage("b", 2, b"{}"))]
    expected = b"headbytes".ljust(PAGE, b"\0") + b"{}"
    assert told(arena, images, expected) == [len(expected)]


def test_tensors_are_told_group_by_group(arena, monkeypatch):
    torch = pytest.importorskip("torch")
    from trainkit.checkpoint.save import torch as copies

    monkeypatch.setattr(copies, "_TOLD_BYTES", 3000)
    tensors = [torch.arange(begin, begin + size) for begin, size in ((1, 250), (7, 125), (9, 500))]
    tensors += [torch.zeros(0, dtype=torch.int64), torch.arange(3)]
    sources = [TensorSource("I64", tuple(t.shape), lambda: b"", t) for t in tensors]
    whole = b"head" * 2 + b"".join(t.numpy().tobytes() for t in tensors)
    images = [(0, FileImage("a", len(whole), b"head" * 2, sources))]
    images.append((2 * PAGE, FileImage("b", 2, b"{}")))
    expected = whole.ljust(2 * PAGE, b"\0") + b"{}"
    for _ in range(2):  # the second time into views that are there already
        assert told(arena, images, expected) == [8 + 3000, 8 + 7000, len(expected)]
