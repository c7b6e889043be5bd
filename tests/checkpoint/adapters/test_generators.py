"""numpy's random generators as entries of the state."""

import numpy as np
import pytest

from trainkit import PerRank
from trainkit.checkpoint import CheckpointManager, CheckpointOptions
from trainkit.checkpoint.adapters.base import Saved
from trainkit.checkpoint.adapters.plain import PlainAdapter
from trainkit.errors import CheckpointDamagedError, EnvironmentFaultError

KINDS = ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"]


def generator(kind, seed):
    return np.random.Generator(getattr(np.random, kind)(seed))


def drawn(one):
    # 32 bits at a time and in pairs, of which halves stay behind
    return [one.integers(0, 2**32, 3, dtype=np.uint32).tolist(), one.normal(size=3).tolist()]


def passed(folder, saved, target):
    manager = CheckpointManager(folder, {"random": saved})
    manager.save(1, blocking=True)
    manager.close()
    options = CheckpointOptions(read_only=True)
    assert CheckpointManager(folder, {"random": target}, options=options).restore_latest() == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrap", [lambda x: x, PerRank], ids=["shared", "per rank"])
def test_they_go_on_where_they_were(tmp_path, kind, wrap):
    saved, target = generator(kind, 1), generator(kind, 2)
    saved.integers(0, 2**32, 3, dtype=np.uint32)
    bits = target.bit_generator
    passed(tmp_path, wrap(saved), wrap(target))
    assert target.bit_generator is bits
    assert drawn(target) == drawn(saved)


def test_the_older_kind_with_half_a_pair_of_normals(tmp_path):
    saved, target = np.random.RandomState(1), np.random.RandomState(2)
    saved.normal()
    passed(tmp_path, saved, target)
    assert [target.normal() for _ in range(3)] == [saved.normal() for _ in range(3)]


def test_a_generator_of_bits(tmp_path):
    saved, target = np.random.PCG64(1), np.random.PCG64(2)
    saved.random_raw(3)
    passed(tmp_path, saved, target)
    assert target.random_raw(3).tolist() == saved.random_raw(3).tolist()


def test_another_kind_is_named(tmp_path):
    target = generator("Philox", 2)
    before = target.bit_generator.state
    words = (
        "random: the run's random generator is a Philox, the checkpoint holds the state of a PCG64"
    )
    with pytest.raises(EnvironmentFaultError, match=words):
        passed(tmp_path / "a", generator("PCG64", 1), target)
    with pytest.raises(EnvironmentFaultError, match="the state of a list"):
        passed(tmp_path / "b", [1], target)
    assert str(target.bit_generator.state) == str(before)


@pytest.mark.parametrize(
    "change",
    [{"state": None}, {"state": {}}, {"state": {"state": -1, "inc": 1}}, {"state": {"state": "x"}}],
)
def test_what_is_no_state_is_damage(change):
    target = np.random.default_rng(0)
    state = {**target.bit_generator.state, **change}
    with pytest.raises(CheckpointDamagedError, match="random: no state of a PCG64"):
        PlainAdapter().prepare("random", {"random": target}, {"state/random": Saved({}, state)})
