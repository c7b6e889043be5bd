import random

import numpy as np
import pytest
import torch

from trainkit.data.torch.randomness import PrivateRandom


def draw():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_streams_depend_on_the_seed_and_go_on_where_they_stopped():
    one, again, other = PrivateRandom(2**63 - 1), PrivateRandom(2**63 - 1), PrivateRandom(6)
    with one:
        first, second = draw(), draw()
    with again:
        assert draw() == first
    draw()
    with again:
        assert draw() == second
    with other:
        assert not set(draw()) & set(first)


def test_the_global_generators_are_left_as_they_were_also_after_an_error():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with pytest.raises(ZeroDivisionError), PrivateRandom(5):
        draw()[0] / 0
    assert draw() == expected
