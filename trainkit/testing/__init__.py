"""Run ranks of a distributed program as real processes, in milliseconds, with a deadline.

    from trainkit.testing import run_ranks

    def all_reduce_ranks() -> float: ...

    def test_sum() -> None:
        results = run_ranks(all_reduce_ranks, 2)
        assert [result.value for result in results] == [1.0, 1.0]

The ranks are forked from one process that has imported torch already; docs/testing.md tells
how, and what differs from a fresh interpreter.
"""

from trainkit.testing.connection import NurseryLost
from trainkit.testing.environs import torchrun_environ
from trainkit.testing.handles import RankHandle, Ranks
from trainkit.testing.ports import free_port
from trainkit.testing.ranks import run_ranks, start_ranks
from trainkit.testing.requirements import requires_cuda, requires_module, requires_root
from trainkit.testing.results import RankResult, RanksFailed, RanksTimeout

__all__ = [
    "NurseryLost",
    "RankHandle",
    "RankResult",
    "Ranks",
    "RanksFailed",
    "RanksTimeout",
    "free_port",
    "requires_cuda",
    "requires_module",
    "requires_root",
    "run_ranks",
    "start_ranks",
    "torchrun_environ",
]
