"""A pytest fixture for tests with ranks. In a conftest.py: ``from … import ranks``."""

from collections.abc import Callable
from functools import partial

import pytest

from trainkit.testing.ranks import run_ranks
from trainkit.testing.results import RankResult

__all__ = ["ranks"]


@pytest.fixture
def ranks(request: pytest.FixtureRequest) -> Callable[..., list[RankResult]]:
    """`run_ranks` without its ``n``, which the mark ``world_size(n)`` of the test gives.

    Raises:
        pytest.UsageError: the test has no such mark.
    """
    mark = request.node.get_closest_marker("world_size")
    if mark is None or len(mark.args) != 1:
        raise pytest.UsageError(
            f"{request.node.nodeid} uses the fixture `ranks`: say how many, "
            "with @pytest.mark.world_size(n)"
        )
    return partial(_run, mark.args[0])


def _run(n: int, target: object, *args: object, **options: object) -> list[RankResult]:
    return run_ranks(target, n, *args, **options)  # type: ignore[arg-type]
