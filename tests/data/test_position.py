import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainkit.data.position import EpochPlan, SamplePosition, Shard
from trainkit.errors import UsageError

lengths = st.integers(0, 300)
worlds = st.integers(1, 7)
batch_sizes = st.integers(1, 9)
quiet = settings(deadline=None)  # the machine is shared; slowness is no failure


def plans(length, start, world, batch_size, train=True, drop_last=False):
    return [
        EpochPlan(length, start, Shard(rank, world), batch_size, train, drop_last)
        for rank in range(world)
    ]


def entries(plan, batches=None):
    """Entries that count, batch by batch."""
    return [
        list(range(begin, end)) if plan.rows(number) else []
        for number, (begin, end) in enumerate(plan.ranges())
        if batches is None or number < batches
    ]


def flat(ranks):
    return sorted(entry for rank in ranks for batch in rank for entry in batch)


@quiet
@given(lengths, worlds, batch_sizes)
def test_training_takes_every_entry_once_and_drops_fewer_than_the_world(n, world, batch_size):
    ranks = plans(n, 0, world, batch_size)
    taken = flat(map(entries, ranks))
    assert taken == list(range(n - ranks[0].dropped))
    assert ranks[0].dropped < world


@quiet
@given(lengths, lengths, worlds, batch_sizes, st.booleans(), st.booleans())
def test_all_ranks_have_the_same_number_of_batches(n, start, world, batch_size, train, drop):
    ranks = plans(n, start, world, batch_size, train, drop and train)
    counts = {len(list(plan.ranges())) for plan in ranks}
    assert counts == {ranks[0].num_batches}
    assert len({plan.dropped for plan in ranks}) == 1


@quiet
@given(lengths, worlds, batch_sizes)
def test_evaluation_neither_drops_nor_doubles(n, world, batch_size):
    ranks = plans(n, 0, world, batch_size, train=False)
    assert flat(map(entries, ranks)) == list(range(n))
    assert all(0 <= b < e <= n for plan in ranks for b, e in plan.ranges())  # all are readable
    rows = [[plan.rows(number) for plan in ranks] for number in range(ranks[0].num_batches)]
    assert all(max(batch) - min(batch) <= 1 for batch in rows)


@quiet
@given(lengths, worlds, batch_sizes)
def test_drop_last_leaves_full_batches_only(n, world, batch_size):
    ranks = plans(n, 0, world, batch_size, drop_last=True)
    assert all(len(batch) == batch_size for plan in ranks for batch in entries(plan))
    assert flat(map(entries, ranks)) == list(range(n - n % (world * batch_size)))
    assert ranks[0].dropped == n % (world * batch_size)


@quiet
@given(lengths, st.lists(st.tuples(worlds, batch_sizes, st.integers(0, 8)), max_size=4), worlds)
def test_any_number_of_ranks_continues_at_any_point(n, attempts, last_world):
    """Interruptions, each with another world and batch size, lose and double nothing."""
    taken, consumed = [], 0
    for world, batch_size, batches in [*attempts, (last_world, 1, None)]:
        ranks = plans(n, consumed, world, batch_size)
        taken += flat(entries(plan, batches) for plan in ranks)
        done = ranks[0].num_batches if batches is None else batches
        consumed = ranks[0].consumed_after(done)
    assert taken == list(range(len(taken)))  # in order, so nothing is missing and nothing twice
    assert consumed == n
    assert n - len(taken) < max([last_world, *(world for world, _, _ in attempts)])


@quiet
@given(lengths, batch_sizes)
def test_one_rank_with_twice_the_batch_sees_the_same_global_batches(n, batch_size):
    (one,) = plans(n, 0, 1, 2 * batch_size)
    two = plans(n, 0, 2, batch_size)
    halves = [entries(plan) for plan in two]
    joined = [first + second for first, second in zip(*halves, strict=True)]
    dropped = two[0].dropped  # an odd last sample, which only one rank can take
    kept = [[entry for entry in batch if entry < n - dropped] for batch in entries(one)]
    assert joined == [batch for batch in kept if batch]
    assert dropped <= 1


def test_shares_are_contiguous_slices_of_the_global_batch():
    assert [entries(plan) for plan in plans(14, 0, 2, 3)] == [
        [[0, 1, 2], [6, 7, 8], [12]],
        [[3, 4, 5], [9, 10, 11], [13]],
    ]


def test_a_rank_with_an_empty_share_reads_one_entry_that_does_not_count():
    last = plans(7, 0, 3, 2, train=False)[2]
    assert list(last.ranges()) == [(4, 6), (6, 7)]
    assert [last.rows(0), last.rows(1)] == [2, 0]


def test_dropped_entries_count_as_consumed_when_the_epoch_is_done():
    plan = plans(11, 0, 2, 3)[0]
    assert plan.dropped == 1
    assert [plan.consumed_after(batches) for batches in range(3)] == [0, 6, 11]


def test_a_position_plans_the_rest_of_its_epoch_and_then_the_next():
    position = SamplePosition(seed=3, epoch=1, consumed=4)
    assert list(position.plan(10, Shard(), 4).ranges()) == [(4, 8), (8, 10)]
    assert position.next_epoch() == SamplePosition(seed=3, epoch=2, consumed=0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Shard(2, 2), "2 of 2"),
        (lambda: Shard(0, 0), "0 of 0"),
        (lambda: Shard(-1, 2), "-1 of 2"),
        (lambda: EpochPlan(5, 0, Shard(), 0), "batch size of 1 or more, found 0"),
        (lambda: EpochPlan(-1, 0, Shard(), 1), "found -1 entries"),
        (lambda: EpochPlan(5, 0, Shard(), 1, train=False, drop_last=True), "never drops"),
    ],
)
def test_impossible_plans_are_refused(make, said):
    with pytest.raises(UsageError, match=said):
        make()
