"""The garbage collector rests, and goes on as it was."""

import contextlib
import gc

import pytest

from trainkit.checkpoint.collecting import not_collecting


@pytest.mark.parametrize("before", [True, False])
def test_it_is_as_it_was_afterwards(before):
    try:
        (gc.enable if before else gc.disable)()
        with contextlib.suppress(ValueError), not_collecting():
            assert not gc.isenabled()
            raise ValueError
        assert gc.isenabled() is before
    finally:
        gc.enable()
