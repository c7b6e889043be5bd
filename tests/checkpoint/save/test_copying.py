"""What is told to be in the arena is there."""

import pytest

from trainkit.checkpoint.format.tensors import TensorSource
from trainkit.checkpoint.save.arena import Arena
from trainkit.checkpoint.save.copying import fill
from trainkit.checkpoint.save.files import FileImage, Layouts

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
    arena.reserve(len(expected))
    with arena.view(0, len(expected)) as view:
        view[:] = bytes(len(expected))

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


def vectors(torch, count, begin=0):
    return {f"v{i:02}": torch.arange(begin + i, begin + i + 50) for i in range(count)}


def mixed(torch):
    """What is joined and what is not, in all orders that a file may have it in."""
    few = {f"d{i}": torch.full((5 + i,), i / 2, dtype=torch.float64) for i in range(2)}
    return {
        **vectors(torch, 9),
        **few,
        "u": torch.arange(24).view(4, 6),  # between the vectors, by its name
        "v03x": torch.arange(7)[::2],
        "v05x": torch.zeros(0, dtype=torch.int64),
        "v06x": torch.tensor(4),
        "v05y": torch.arange(100, 100 + (1 << 14)),  # large
        "w": torch.arange(6).view(2, 3).T,
        "x": torch.ones(3, requires_grad=True),
        "y": torch.tensor([1 + 2j, 3j]).conj(),
        "z": torch.ones(5, dtype=torch.bool),
    }


def image_of(torch, layouts, tensors):
    from trainkit.checkpoint.adapters.torch.tensors import source

    return layouts.image("a", {name: source(tensor, name) for name, tensor in tensors.items()})


@pytest.fixture
def joins(monkeypatch):
    """How many tensors each call of `torch.cat` has joined."""
    torch = pytest.importorskip("torch")
    found, real = [], torch.cat

    def cat(tensors, out):
        found.append([tensor.numel() for tensor in tensors])
        return real(tensors, out=out)

    monkeypatch.setattr(torch, "cat", cat)
    return found


@pytest.mark.parametrize("told_bytes", [8 << 20, 1000, 100])
def test_small_vectors_are_joined_with_all_else_between_them(arena, joins, monkeypatch, told_bytes):
    torch = pytest.importorskip("torch")
    from trainkit.checkpoint.save import torch as copies

    monkeypatch.setattr(copies, "_TOLD_BYTES", told_bytes)
    layouts = [Layouts(), Layouts()]
    plans = set()
    for begin in (0, 1000):  # the second time into views that are there already
        images = [
            image_of(torch, layouts[0], mixed(torch) | vectors(torch, 9, begin)),
            image_of(torch, layouts[1], vectors(torch, 6, begin + 7)),
        ]
        contents = [b"".join(map(bytes, image.parts())) for image in images]
        assert [image.size for image in images] == [*map(len, contents)]
        second = -(-images[0].size // PAGE) * PAGE
        whole = contents[0].ljust(second, b"\0") + contents[1]
        placed = [(0, images[0]), (second, images[1])]
        assert told(arena, placed, whole)[-1] == len(whole)
        plans.add(id(arena.places[1]))
        # Where the second file begins is of the plan as well.
        moved = [(0, images[0]), (second + PAGE, images[1])]
        told(arena, moved, contents[0].ljust(second + PAGE, b"\0") + contents[1])
        told(arena, placed, whole)
    sizes = [size for them in joins for size in them]
    assert max(sizes) <= 50 if told_bytes > 100 else not sizes
    assert all(len(them) >= 4 for them in joins)


def test_a_plan_is_made_once(arena):
    torch = pytest.importorskip("torch")
    layouts, plans = Layouts(), []
    for begin in (0, 5):
        image = image_of(torch, layouts, vectors(torch, 6, begin))
        told(arena, [(0, image)], b"".join(map(bytes, image.parts())))
        plans.append(arena.places[1])
    assert plans[0] is plans[1]


def test_values_that_change_between_numpy_and_torch(arena):
    """The layout of the file is the same, and what is copied together is not."""
    torch, np = pytest.importorskip("torch"), pytest.importorskip("numpy")
    from trainkit.checkpoint.adapters import arrays
    from trainkit.checkpoint.adapters.torch.tensors import source

    layouts = Layouts()
    for number, kinds in enumerate(("ntnttttt", "tnnttttt", "tttttttt", "nnnnnnnn", "ntnttttt")):
        values = {f"v{i}": np.arange(9.0) + 10 * i + number for i in range(len(kinds))}
        sources = {
            name: arrays.source(value, name) if kind == "n" else source(torch.tensor(value), name)
            for (name, value), kind in zip(values.items(), kinds, strict=True)
        }
        image = layouts.image("a", sources)
        whole = image.head + b"".join(value.tobytes() for value in values.values())
        told(arena, [(0, image)], whole)


def test_a_save_in_inference_mode_is_not_the_last(arena):
    torch = pytest.importorskip("torch")
    layouts = Layouts()
    for mode in (True, False, True):
        with torch.inference_mode(mode):
            image = image_of(torch, layouts, mixed(torch))
            told(arena, [(0, image)], b"".join(map(bytes, image.parts())))


def test_another_layout_is_not_copied_by_the_plan_of_the_last(arena):
    torch = pytest.importorskip("torch")
    layouts = Layouts()
    one = vectors(torch, 8)
    wider = {**one, "v03": torch.arange(99)}
    turned = {name: tensor.float() for name, tensor in one.items()}
    sizes = set()
    for tensors in (wider, one, turned, {"v00": torch.arange(400)}, one):
        image = image_of(torch, layouts, tensors)
        whole = b"".join(map(bytes, image.parts()))
        told(arena, [(0, image)], whole)
        sizes.add(image.size)
    assert len(sizes) > 1


def test_a_layout_is_one_object_as_long_as_it_is_the_same():
    torch = pytest.importorskip("torch")
    layouts = Layouts()
    first = image_of(torch, layouts, vectors(torch, 3))
    assert image_of(torch, layouts, vectors(torch, 3, begin=5)).layout is first.layout
    assert image_of(torch, layouts, vectors(torch, 4)).layout is not first.layout
    empty = {**vectors(torch, 3), "v01": torch.zeros(0, dtype=torch.int64)}
    assert image_of(torch, layouts, empty).layout.names == ["v00", "v02"]
