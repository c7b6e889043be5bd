"""Large files are read straight into a module's tensors, and what comes of it is the same."""

import logging

import pytest
import torch

from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.checkpoint.adapters import rng
from trainkit.checkpoint.format.checksums import CHUNK_BYTES
from trainkit.checkpoint.load import reader, unread
from trainkit.checkpoint.save import division
from trainkit.errors import CheckpointDamagedError, EnvironmentFaultError

HERE = CheckpointOptions(background=False)
LARGE = 3 * CHUNK_BYTES // 4
"""Float32 elements of a parameter that lies in four chunks."""


class Net(torch.nn.Module):
    """Tensors of many kinds; ``large`` comes first in the file, or among the first."""

    def __init__(self, value, large=LARGE):
        super().__init__()
        generator = torch.Generator().manual_seed(value)
        self.large = torch.nn.Parameter(torch.randn(large, generator=generator))
        self.brief = torch.nn.Parameter(torch.randn(3, 5, generator=generator).bfloat16())
        self.none = torch.nn.Parameter(torch.zeros(0, 3))
        self.precise = torch.nn.Parameter(torch.randn(7, 1, generator=generator).double())
        self.register_buffer("count", torch.tensor(value))
        self.register_buffer("flags", torch.tensor([True, False, bool(value)]))
        self.register_buffer("phase", torch.randn(2, generator=generator) * (1 + 2j))
        self.register_buffer("octets", torch.arange(value, value + 5, dtype=torch.uint8))


@pytest.fixture(autouse=True)
def every_file_is_large(monkeypatch):
    monkeypatch.setattr(reader, "LARGE", 0)


@pytest.fixture
def whole_files(monkeypatch):
    """Paths of files that were read into memory of their own."""
    found, read = [], unread.read_verified

    def note(storage, path, record):
        if "/ranks/" not in path:
            found.append(path)
        return read(storage, path, record)

    monkeypatch.setattr(unread, "read_verified", note)
    return found


def manager(root, model, **more):
    return CheckpointManager(root, {"model": model, **more}, options=HERE)


def saved(root, *models):
    """A root with a checkpoint of each model, as steps 1, 2 and so on."""
    for step, model in enumerate(models, start=1):
        own = manager(root, model)
        own.save(step)
        own.close()


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


def damage(root, step, place=2 * CHUNK_BYTES + 1):
    (path,) = root.glob(f"step-{step:010d}.*/model/model.safetensors")
    with open(path, "r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def test_all_kinds_of_tensors_are_filled_where_they_are(tmp_path, whole_files):
    model, fresh = Net(1), Net(0)
    saved(tmp_path, model)
    places = {name: value.data_ptr() for name, value in fresh.state_dict().items()}
    manager(tmp_path, fresh).restore_latest()
    assert same(model, fresh)
    assert {name: value.data_ptr() for name, value in fresh.state_dict().items()} == places
    assert whole_files == []


@pytest.fixture
def in_two_files(tmp_path, on_ranks, quick, monkeypatch):
    """A checkpoint of two ranks' making; the model, and the sizes of its files."""
    monkeypatch.setattr(division, "SPLIT_BYTES", 64)
    model = Net(1)

    def save(communicator):
        own = CheckpointManager(
            tmp_path, {"model": model}, communicator=communicator, options=quick
        )
        own.save(1, blocking=True)
        own.close()

    assert on_ranks(2, save) == [None, None]
    return model, sorted(p.stat().st_size for p in tmp_path.glob("step-*/model/*.safetensors"))


def test_files_of_several_ranks_are_filled(tmp_path, in_two_files, whole_files):
    (model, sizes), fresh = in_two_files, Net(0)
    assert len(sizes) == 2
    manager(tmp_path, fresh).restore_latest()
    assert same(model, fresh)
    assert whole_files == []


def test_small_files_beside_large_ones_are_given_back_too(
    tmp_path, in_two_files, whole_files, monkeypatch
):
    (model, (small, large)), fresh = in_two_files, Net(0)
    assert small < large
    monkeypatch.setattr(reader, "LARGE", large)
    manager(tmp_path, fresh).restore_latest()
    assert same(model, fresh)
    assert whole_files == []


class Shared(torch.nn.Module):
    """Tensors that share memory in every way."""

    def __init__(self, value):
        super().__init__()
        self.first = torch.nn.Parameter(torch.full((4, 6), float(value)))
        self.tied = self.first
        self.turned = torch.nn.Parameter(self.first.detach().t())
        base = torch.arange(10.0) + value
        self.register_buffer("left", base[:7])
        self.register_buffer("right", base[3:])
        self.register_buffer("columns", torch.full((5, 8), float(value))[:, ::2])
        self.register_buffer("wide", torch.full((3, 1), float(value)))


def test_tensors_that_share_memory_or_have_gaps(tmp_path):
    model, fresh = Shared(3), Shared(0)
    saved(tmp_path, model)
    before = fresh.columns.storage_offset(), fresh.columns.stride()
    manager(tmp_path, fresh).restore_latest()
    assert same(model, fresh)
    assert fresh.tied is fresh.first
    assert fresh.turned.data_ptr() == fresh.first.data_ptr()
    assert (fresh.columns.storage_offset(), fresh.columns.stride()) == before


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_of_tensors_that_were_two_and_are_one_now_the_last_counts(tmp_path, names):
    """As in torch; and each one's bytes are verified, whoever else writes to the same memory."""

    def model(tied):
        it = torch.nn.Module()
        for name in names:
            it.add_module(name, torch.nn.Linear(9, 9, bias=False))
        if tied:
            it.get_submodule(names[1]).weight = it.get_submodule(names[0]).weight
        return it

    two, one = model(tied=False), model(tied=True)
    saved(tmp_path, two)
    manager(tmp_path, one).restore_latest()
    assert torch.equal(one.a.weight, two.get_submodule(names[1]).weight)


def test_where_tensors_are_made_elsewhere_by_default(tmp_path):
    saved(tmp_path, Shared(3))
    fresh = Shared(0)
    with torch.device("meta"):
        manager(tmp_path, fresh).restore_latest()
    assert same(fresh, Shared(3))


def test_numpy_is_not_needed(tmp_path, monkeypatch):
    saved(tmp_path, Net(1))
    fresh = Net(0)

    def unavailable(*_, **__):
        raise RuntimeError("Numpy is not available")

    monkeypatch.setattr(torch.Tensor, "numpy", unavailable)
    monkeypatch.setattr(rng, "give_back", lambda states: None)  # torch's own way takes it here
    manager(tmp_path, fresh).restore_latest()
    assert same(fresh, Net(1))


def test_another_precision_is_converted_with_a_warning(tmp_path, caplog):
    saved(tmp_path, Net(1))
    fresh = Net(0)
    fresh.large = torch.nn.Parameter(fresh.large.detach().double())
    manager(tmp_path, fresh).restore_latest()
    assert torch.equal(fresh.large, Net(1).large.double())
    assert "model.large: saved as torch.float32 and restored as torch.float64" in caplog.text


def test_another_shape_is_refused_and_nothing_changes(tmp_path):
    saved(tmp_path, Net(1))
    fresh, before = Net(0, large=LARGE + 1), Net(0, large=LARGE + 1)
    own = manager(tmp_path, fresh)
    with pytest.raises(EnvironmentFaultError, match=rf"model.large: .*\({LARGE + 1},\)"):
        own.restore_latest()
    assert same(fresh, before)
    own.save(2)  # the state is whole


def test_autograd_is_told(tmp_path):
    saved(tmp_path, Net(1, large=3))
    fresh = Net(0, large=3)
    loss = (fresh.large * fresh.large).sum()
    manager(tmp_path, fresh).restore_latest()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_autograd_is_told_of_damage_too(tmp_path):
    saved(tmp_path, Net(1))
    damage(tmp_path, 1)
    fresh = Net(0)
    loss = (fresh.large * fresh.large).sum()
    with pytest.raises(CheckpointDamagedError):
        manager(tmp_path, fresh).restore_latest()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_damage_on_the_way_is_passed_over_and_the_older_one_is_whole(tmp_path, caplog):
    old = Net(1)
    saved(tmp_path, old, Net(2))
    damage(tmp_path, 2)
    fresh = Net(0)
    own = manager(tmp_path, fresh)
    assert own.restore_latest() == 1
    assert same(old, fresh)
    assert "model.safetensors: bytes 16777216 to" in caplog.text
    assert len([*(tmp_path / ".quarantine").iterdir()]) == 1
    own.save(3)


def test_where_nothing_is_whole_the_state_is_not_saved_any_more(tmp_path):
    saved(tmp_path, Net(1))
    damage(tmp_path, 1)
    fresh = Net(0)
    own = manager(tmp_path, fresh)
    with pytest.raises(CheckpointDamagedError, match="no checkpoint that is whole"):
        own.restore_latest()
    assert not same(fresh, Net(0))
    other = manager(tmp_path / "other", torch.nn.Sequential(fresh))  # of which it is a part
    for refused in (lambda: own.save(2), lambda: other.save(2), other.restore_latest):
        with pytest.raises(CheckpointDamagedError, match="overwritten some of model already"):
            refused()
    manager(tmp_path / "another", Net(0)).save(2)
    with pytest.raises(CheckpointDamagedError, match="do not match their checksum"):
        own.restore(1)
    with pytest.raises(CheckpointDamagedError, match="overwritten some of model already"):
        own.save(2)
    damage(tmp_path, 1)  # the same bit: it is whole again
    assert own.restore(1) == 1
    assert same(fresh, Net(1))
    own.save(2)
    other.save(2)


def test_damage_on_the_way_leaves_all_else_as_it_was(tmp_path, box):
    first = manager(tmp_path, Net(1), box=box(1))
    first.save(1)
    first.close()
    damage(tmp_path, 1)
    kept = box(0)
    before = torch.get_rng_state()
    with pytest.raises(CheckpointDamagedError):
        manager(tmp_path, Net(0), box=kept).restore_latest()
    assert kept.value == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_damage_that_is_found_before_leaves_the_state_as_it_was(tmp_path):
    saved(tmp_path, Net(1))
    damage(tmp_path, 1, place=30)  # in the header
    fresh = Net(0)
    own = manager(tmp_path, fresh)
    with pytest.raises(CheckpointDamagedError):
        own.restore_latest()
    assert same(fresh, Net(0))
    own.save(2)


def test_damage_that_one_rank_meets_on_the_way_counts_for_all(
    tmp_path, on_ranks, quick, monkeypatch
):
    saved(tmp_path, Net(1), Net(2))
    fill = unread.UnreadFile.fill

    def bad_on_rank_1(self, into):
        fill(self, into)
        if self._storage.rank == 1 and "step-0000000002" in self._path:
            raise CheckpointDamagedError("bytes are not those that were saved")

    monkeypatch.setattr(unread.UnreadFile, "fill", bad_on_rank_1)

    def rank(communicator):
        model = Net(0)
        own = CheckpointManager(
            tmp_path, {"model": model}, communicator=communicator, options=quick
        )
        own._root.storage.rank = communicator.rank
        return own.restore_latest(), same(model, Net(1))

    assert on_ranks(2, rank) == [(1, True), (1, True)]


def test_where_nothing_is_whole_no_rank_has_a_state_to_save(tmp_path, on_ranks, quick, monkeypatch):
    saved(tmp_path, Net(1))
    fill = unread.UnreadFile.fill

    def bad_on_rank_1(self, into):
        fill(self, into)
        if self._storage.rank == 1:
            raise CheckpointDamagedError("bytes are not those that were saved")

    monkeypatch.setattr(unread.UnreadFile, "fill", bad_on_rank_1)

    def rank(communicator):
        model = Net(0)
        more = {"communicator": communicator, "options": quick}
        own = CheckpointManager(tmp_path, {"model": model}, **more)
        own._root.storage.rank = communicator.rank
        with pytest.raises(CheckpointDamagedError, match="no checkpoint that is whole"):
            own.restore_latest()
        with pytest.raises(CheckpointDamagedError, match="overwritten some of model already"):
            own.save(2)

    assert on_ranks(2, rank) == [None, None]


def test_weights_to_begin_with_are_passed_over_as_well(tmp_path, caplog):
    saved(tmp_path / "old", Net(1), Net(2))
    damage(tmp_path / "old", 2)
    fresh = Net(0)
    assert manager(tmp_path / "new", fresh).restore_latest(init_from=tmp_path / "old") is None
    assert same(fresh, Net(1))
    with caplog.at_level(logging.WARNING):
        assert "is passed over" in caplog.text


def test_weights_to_begin_with_that_are_damaged_are_not_trained(tmp_path):
    saved(tmp_path / "old", Net(1))
    damage(tmp_path / "old", 1)
    own = manager(tmp_path / "new", Net(0))
    with pytest.raises(CheckpointDamagedError, match="holds nothing that is whole"):
        own.restore_latest(init_from=tmp_path / "old")
    with pytest.raises(CheckpointDamagedError, match="overwritten some of model already"):
        own.save(1)
    saved(tmp_path / "whole", Net(2))
    assert own.restore_latest(init_from=tmp_path / "whole") is None
    own.save(1)


def test_an_optimizer_beside_it_reads_its_file_whole(tmp_path, whole_files):
    def run(value):
        model = Net(value, large=100)
        optimizer = torch.optim.SGD([model.large], lr=0.1, momentum=0.9)
        model.large.sum().backward()
        optimizer.step()
        return model, optimizer

    (model, optimizer), (fresh, other) = run(1), run(0)
    manager(tmp_path, model, optimizer=optimizer).save(1)
    manager(tmp_path, fresh, optimizer=other).restore_latest()
    assert same(model, fresh)
    (of_model, of_fresh) = (one.state_dict()["state"][0] for one in (optimizer, other))
    assert torch.equal(of_model["momentum_buffer"], of_fresh["momentum_buffer"])
    assert [path.rpartition("/")[2] for path in whole_files] == ["optimizer.safetensors"]
