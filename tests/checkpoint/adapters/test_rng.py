"""Random generators: what is given back is checked first."""

import random

import numpy as np
import pytest

from trainkit.checkpoint.adapters import rng
from trainkit.errors import CheckpointDamagedError, EnvironmentFaultError


@pytest.fixture(autouse=True)
def _as_before():
    states = rng.capture()
    yield
    rng.give_back(states)


def test_what_was_captured_passes_and_draws_the_same_numbers():
    states = rng.capture()
    drawn = random.random(), np.random.random()
    rng.check(states)
    rng.give_back(states)
    assert (random.random(), np.random.random()) == drawn


def test_a_check_draws_nothing():
    states = rng.capture()
    rng.check(states)
    assert repr(rng.capture()) == repr(states)


@pytest.mark.parametrize("name", ["python", "numpy"])
@pytest.mark.parametrize("value", [None, 0, "x", [], {}, (3, (1, 2), None)])
def test_what_is_no_state_is_damage(name, value):
    states = rng.capture() | {name: value}
    with pytest.raises(CheckpointDamagedError, match="no states of random generators"):
        rng.check(states)


def test_another_kind_of_generator_is_named():
    states = rng.capture()
    states["numpy"] = states["numpy"] | {"bit_generator": "PCG64"}
    with pytest.raises(EnvironmentFaultError, match=r"the run has MT19937.*state of PCG64"):
        rng.check(states)
