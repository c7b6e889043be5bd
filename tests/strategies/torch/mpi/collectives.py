"""Run on ranks of mpirun: every collective that torch has, against what it must come to.

python collectives.py [shared | alone | hosts]
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

import trainkit
from trainkit.errors import StrategyError
from trainkit.strategies.torch.mpi import Mpi
from trainkit.strategies.torch.mpi.group import MpiGroup
from trainkit.strategies.torch.mpi.options import MpiOptions

WAYS = {
    "shared": MpiOptions(),
    "alone": MpiOptions(shared_memory=False),
    "hosts": MpiOptions(ranks_per_host=2),
}
SIZES = (1, 7, 4_099, 8_192, 8_193, 700_001, 1_300_000)
"""Elements around what is small, staged in one chunk, and in several, of all widths."""
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8)
OPS = {
    dist.ReduceOp.SUM: lambda stack: stack.sum(0),
    dist.ReduceOp.MIN: lambda stack: stack.amin(0),
    dist.ReduceOp.MAX: lambda stack: stack.amax(0),
    dist.ReduceOp.PRODUCT: lambda stack: stack.prod(0),
}


def values(rank: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    """Small whole numbers that differ over ranks and places: exact in every dtype."""
    generator = torch.Generator().manual_seed(rank * 7919 + size)
    return torch.randint(0, 4, (size,), generator=generator).to(dtype)


def stack(n: int, size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.stack([values(rank, size, dtype).double() for rank in range(n)])


def same(found: torch.Tensor, expected: torch.Tensor, what: object) -> None:
    if not torch.equal(found.double(), expected.double()):
        wrong = (found.double() != expected.double()).nonzero()[:3].tolist()
        raise AssertionError(f"{what}: wrong at {wrong}: {found[:4]} for {expected[:4]}")


def all_reduce(rank: int, n: int) -> None:
    for dtype in DTYPES:
        for size in SIZES:
            for op, expected in OPS.items():
                if size > 10_000 and op != dist.ReduceOp.SUM:
                    continue
                tensor = values(rank, size, dtype)
                dist.all_reduce(tensor, op)
                same(tensor, expected(stack(n, size, dtype)), (dtype, size, op))
    mean = values(rank, 5000, torch.float32)
    dist.all_reduce(mean, dist.ReduceOp.AVG)
    torch.testing.assert_close(mean.double(), stack(n, 5000, torch.float32).mean(0))
    flags = torch.tensor([rank == 0, True, False])
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    assert flags.tolist() == [True, True, False]
    bits = torch.tensor([1 << rank, 3])
    dist.all_reduce(bits, dist.ReduceOp.BOR)
    assert bits.tolist() == [(1 << n) - 1, 3]
    odd = torch.zeros(4, 6)
    odd[:, ::2] = rank + 1.0
    view = odd[:, ::2]  # not contiguous
    dist.all_reduce(view)
    assert odd[0].tolist() == [n * (n + 1) / 2, 0] * 3
    column = odd[:, 1]  # nor is this, and its reshape(-1) is no copy
    column.fill_(rank)
    dist.all_reduce(column)
    assert (column == n * (n - 1) / 2).all()
    assert odd[0, ::2].tolist() == [n * (n + 1) / 2] * 3, "its neighbours"
    empty = torch.empty(0)
    dist.all_reduce(empty)
    several = [values(rank, 3, torch.float32), values(rank, 900, torch.float32)]
    dist.all_reduce_coalesced(several)
    same(several[1], stack(n, 900, torch.float32).sum(0), "coalesced")


def sum_in_bf16_is_exact_to_one_rounding(rank: int, n: int) -> None:
    """fp32 in between: 1 + n * 2**-8 needs more than bf16's bits until the end.

    On its way to another host a sum is rounded as well: bf16 on the wire.
    """
    if sys.argv[1] == "hosts":
        return
    for size in (1000, 100_000):
        tensor = torch.full((size,), 1.0 if rank == 0 else 2.0**-8, dtype=torch.bfloat16)
        dist.all_reduce(tensor)
        expected = torch.tensor(1.0 + (n - 1) * 2.0**-8).to(torch.bfloat16)
        assert (tensor == expected).all(), (tensor[0], expected)


def averages_of_fp16_overflow_nowhere(rank: int, n: int) -> None:
    """The sum of any two is more than fp16 holds, as of gradients that a GradScaler scales."""

    def large(count: int) -> torch.Tensor:
        return torch.full((count,), 40_000.0, dtype=torch.float16)

    for count in (100, 100_000):
        tensor = large(count)
        dist.all_reduce(tensor, dist.ReduceOp.AVG)
        assert (tensor == 40_000).all(), tensor[0]
    part, tensor = large(10), large(10)
    dist.reduce_scatter_tensor(part, large(10 * n), dist.ReduceOp.AVG)
    dist.reduce(tensor, 0, dist.ReduceOp.AVG)
    assert (part == 40_000).all()
    assert (tensor == 40_000).all()


def refused(rank: int, n: int) -> None:
    """What MPI would do wrongly without a word, or read beyond its end for; nothing is queued."""

    def calls() -> Iterator[tuple[type[BaseException], Callable[[], object]]]:
        row = torch.ones(n)
        yield ValueError, lambda: dist.all_to_all_single(row, row, [n] * n, [n] * n)
        yield ValueError, lambda: dist.all_to_all_single(row, row, [n], [n])
        if rank == 0:
            ones = [torch.ones(r + 1) for r in range(n)]
            yield ValueError, lambda: dist.scatter(torch.ones(1), ones, 0)
            yield ValueError, lambda: dist.gather(torch.ones(1), ones, 0)
        for dtype in (torch.uint32, torch.float8_e4m3fn):
            yield StrategyError, lambda dtype=dtype: dist.all_reduce(torch.ones(3).to(dtype))
        yield StrategyError, dist.monitored_barrier

    for error, call in calls():
        try:
            call()
        except error:
            continue
        raise AssertionError(f"no {error.__name__}")
    dist.barrier()


def moved(rank: int, n: int) -> None:
    for root in range(n):
        tensor = values(rank, 5000, torch.bfloat16)
        dist.broadcast(tensor, root)
        same(tensor, values(root, 5000, torch.bfloat16), "broadcast")
        every_second = torch.arange(10.0)[::2] if rank == root else torch.zeros(10)[::2]
        dist.broadcast(every_second, root)
        same(every_second, torch.arange(0, 10, 2), "broadcast of every second element")
        tensor = values(rank, 300, torch.float32)
        dist.reduce(tensor, root)
        expected = (
            stack(n, 300, torch.float32).sum(0)
            if rank == root
            else values(rank, 300, torch.float32)
        )
        same(tensor, expected, "reduce")
        parts = [torch.empty(6) for _ in range(n)] if rank == root else None
        dist.gather(torch.full((6,), float(rank)), parts, root)
        assert parts is None or [part[0].item() for part in parts] == list(range(n))
        given = [torch.full((2, 3), float(r)) for r in range(n)] if rank == root else None
        mine = torch.empty(2, 3)
        dist.scatter(mine, given, root)
        assert (mine == rank).all()
    parts = [torch.empty(2, 5, dtype=torch.float16) for _ in range(n)]
    dist.all_gather(parts, torch.full((2, 5), float(rank), dtype=torch.float16))
    assert [part[1, 4].item() for part in parts] == list(range(n))
    whole = torch.empty(n * 7)
    dist.all_gather_into_tensor(whole, torch.full((7,), float(rank)))
    same(whole, torch.arange(n).repeat_interleave(7), "all_gather_into_tensor")
    for dtype in (torch.float32, torch.bfloat16):
        for op in (dist.ReduceOp.SUM, dist.ReduceOp.AVG):
            mine = torch.empty(1000, dtype=dtype)
            dist.reduce_scatter_tensor(mine, values(rank, 1000 * n, dtype), op)
            total = stack(n, 1000 * n, dtype).sum(0).view(n, -1)[rank]
            expected = total / n if op == dist.ReduceOp.AVG else total
            torch.testing.assert_close(mine.double(), expected, rtol=4e-3, atol=0)
    mine = torch.empty(4)
    dist.reduce_scatter(mine, [torch.full((4,), float(r)) for r in range(n)])
    assert (mine == rank * n).all()
    received = [torch.empty(3) for _ in range(n)]
    dist.all_to_all(received, [torch.full((3,), 10.0 * rank + r) for r in range(n)])
    assert [part[0].item() for part in received] == [10.0 * r + rank for r in range(n)]
    splits = [r + 1 for r in range(n)]
    out = torch.empty(n * (rank + 1), 2)
    dist.all_to_all_single(out, torch.full((sum(splits), 2), float(rank)), [rank + 1] * n, splits)
    same(out[:, 0], torch.arange(n).repeat_interleave(rank + 1), "all_to_all_single")
    objects: list[object] = [None] * n
    dist.all_gather_object(objects, {"rank": rank, "text": "x" * rank})
    assert objects == [{"rank": r, "text": "x" * r} for r in range(n)]
    dist.barrier()


def messages(rank: int, n: int) -> None:
    """Large ones in a ring, which would deadlock one by one; out of order by tag; from anybody."""
    right, left = (rank + 1) % n, (rank - 1) % n
    large, received = torch.full((1 << 19,), float(rank)), torch.empty(1 << 19)
    pair = [dist.P2POp(dist.isend, large, right), dist.P2POp(dist.irecv, received, left)]
    for work in dist.batch_isend_irecv(pair):
        work.wait()
    assert (received == left).all()
    sum_, sending = torch.ones(100_000), None
    if rank == 0:  # moves only while its sender calls MPI, and all_reduce waits elsewhere
        sending = dist.isend(large, 1)
    elif rank == 1:
        dist.recv(received, 0)
    dist.all_reduce(sum_)
    if sending is not None:
        sending.wait()
    assert (sum_ == n).all()
    if rank == 0:
        dist.send(torch.arange(10.0)[::2], 1)
    elif rank == 1:
        halves = torch.empty(5)
        dist.recv(halves, 0)
        assert halves.tolist() == [0, 2, 4, 6, 8]
    if rank == 0:
        dist.send(torch.tensor([1.0]), 1, tag=1)
        dist.send(torch.tensor([2.0]), 1, tag=2)
    elif rank == 1:
        late, early = torch.empty(1), torch.empty(1)
        waiting = dist.irecv(early, 0, tag=1)
        dist.recv(late, 0, tag=2)
        waiting.wait()
        assert (early.item(), late.item()) == (1.0, 2.0)
    if rank != 0:
        dist.send(torch.tensor([float(rank)]), 0, tag=3)
    else:
        seen = set()
        for _ in range(n - 1):
            tensor = torch.empty(1)
            source = dist.recv(tensor, tag=3)
            assert tensor.item() == source
            seen.add(source)
        assert seen == set(range(1, n))


def groups(rank: int, n: int) -> None:
    """Parts of the world, at once, in another order on other ranks."""
    pair, alone = dist.new_group([0, n - 1]), dist.new_group([1])
    both = dist.new_group(list(range(n)), timeout=timedelta(seconds=45))
    assert isinstance(both, MpiGroup)
    assert both._options.timeout == 45
    one, two = torch.ones(70_000), torch.ones(70_000)
    order = ((one, None), (two, both)) if rank == 0 else ((two, both), (one, None))
    for work in [dist.all_reduce(t, group=g, async_op=True) for t, g in order]:
        work.wait()
    assert one[0] == two[0] == n
    if rank in (0, n - 1):
        tensor = torch.ones(3)
        dist.all_reduce(tensor, group=pair)
        assert tensor[0] == 2
    if rank == 1:
        tensor = torch.ones(3)
        dist.all_reduce(tensor, group=alone)
        assert tensor[0] == 1
    dist.destroy_process_group(both)


def many_at_once(rank: int, n: int) -> None:
    tensors = [torch.full((20_000 + i,), float(rank)) for i in range(40)]
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    for work in reversed(works):
        work.wait()
    assert all((tensor == n * (n - 1) / 2).all() for tensor in tensors)


def kept(rank: int, n: int) -> None:
    """Memory that is reduced where it lies, given up, and made anew."""
    group = dist.group.WORLD
    for round_ in range(4):
        flat = torch.empty(300_000 + round_)
        views = flat.split(100_000)
        for step in range(3):
            flat.fill_(rank + step)
            group.average(flat, keep=True).wait()
            expected = (n - 1) / 2 + step
            assert all((view == expected).all() for view in views), (round_, step, views[0][:3])
        part = flat[1000:200_000]
        part.fill_(rank)
        dist.all_reduce(part)  # where it lies, too: the storage is shared
        assert (part == n * (n - 1) / 2).all()
        del flat, views, part
    mixed = torch.full((50_000,), float(rank))
    if rank == 0:  # on one rank alone
        group._reducing._host.memory.share(mixed) if group._reducing._host else None
    dist.all_reduce(mixed)
    assert (mixed == n * (n - 1) / 2).all()


def main(ctx: trainkit.Context) -> None:
    warnings.simplefilter("ignore", FutureWarning)
    rank, n = ctx.rank, ctx.world_size
    assert dist.get_backend() == "mpi4py"
    for check in (
        all_reduce,
        sum_in_bf16_is_exact_to_one_rounding,
        averages_of_fp16_overflow_nowhere,
        refused,
        moved,
        messages,
        groups,
        many_at_once,
        kept,
    ):
        check(rank, n)
        if rank == 0:
            print(check.__name__, "ok", flush=True)
    assert ctx.all_reduce(rank, "sum") == n * (n - 1) // 2
    assert ctx.all_reduce(torch.tensor([1.0, rank]), "mean")[1] == (n - 1) / 2


if __name__ == "__main__":
    trainkit.run(main, strategy=Mpi(options=WAYS[sys.argv[1]]))
