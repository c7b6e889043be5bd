"""Interruptions: what comes after one is what would have come without it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainkit.errors import DataError, EnvironmentFaultError, ExitCode
from trainkit.state import Progress

EPOCHS = 3


class Killed(Exception):
    pass


def train(loader, progress, seen, *, checkpoints=None, kill_after=None, restore=None):
    """The loop that users write; ``seen`` gets (epoch, sample) of every sample trained on.

    A checkpoint is taken after each step, and one more after each epoch.
    """
    if restore is not None:
        loader.load_state_dict(json.loads(json.dumps(restore["loader"])))
        progress.load_state_dict(restore["progress"])
    checkpoints = [] if checkpoints is None else checkpoints

    def save():
        checkpoints.append({"loader": loader.state_dict(), "progress": progress.state_dict()})

    for progress.epoch in range(progress.epoch, EPOCHS):  # noqa: B020
        for batch in loader:
            assert loader.epoch == progress.epoch
            seen += [(progress.epoch, number) for number in batch.tolist()]
            progress.step += 1
            save()
            if progress.step == kill_after:
                raise Killed
        save()


def killed(loader, seen, **options):
    checkpoints = []
    with pytest.raises(Killed):
        train(loader, Progress(), seen, checkpoints=checkpoints, **options)
    return checkpoints


@pytest.fixture
def unbroken(shards, numbers):
    seen = []
    (loader,) = shards(1, numbers(64), 4, shuffle=True)
    train(loader, Progress(), seen)
    assert len(seen) == 64 * EPOCHS
    return seen


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("step", [1, 6, 16, 20, 48])  # 16 a epoch: B046 at its end and at 40 %
def test_a_killed_run_neither_repeats_nor_loses_a_sample(
    shards, numbers, unbroken, step, num_workers
):
    seen = []
    (loader,) = shards(1, numbers(64), 4, shuffle=True, num_workers=num_workers)
    checkpoints = killed(loader, seen, kill_after=step)
    (again,) = shards(1, numbers(64), 4, shuffle=True, num_workers=num_workers)
    train(again, Progress(), seen, restore=checkpoints[-1])
    assert seen == unbroken


def test_a_state_saved_after_an_epoch_continues_with_the_next(shards, numbers, unbroken):
    (loader,) = shards(1, numbers(64), 4, shuffle=True)
    checkpoints = killed(loader, [], kill_after=17)
    after_epoch = checkpoints[16]  # saved outside of the inner loop
    assert after_epoch["progress"] == {"epoch": 0, "step": 16}
    (again,) = shards(1, numbers(64), 4, shuffle=True)
    seen = []
    train(again, Progress(), seen, restore=after_epoch)
    assert seen == unbroken[64:]


def test_a_finished_run_has_nothing_left(shards, numbers, batches):
    (loader,) = shards(1, numbers(64), 4, shuffle=True)
    checkpoints, seen = [], []
    train(loader, Progress(), [], checkpoints=checkpoints)
    (again,) = shards(1, numbers(64), 4, shuffle=True)
    train(again, Progress(), seen, restore=checkpoints[-1])
    assert seen == []


def test_the_order_after_a_resume_is_that_of_the_unbroken_epoch(shards, numbers, batches):
    (loader,) = shards(1, numbers(64), 4, shuffle=True)  # B048
    iterator = iter(loader)
    for _ in range(5):
        next(iterator)
    (again,) = shards(1, numbers(64), 4, shuffle=True)
    again.load_state_dict(loader.state_dict())
    assert again.batches_left == 11
    assert batches(again) == [batch.tolist() for batch in iterator]


def test_a_second_interruption_counts_from_the_start_of_the_epoch(shards, numbers):
    states = []  # B051
    for _ in range(3):
        (loader,) = shards(1, numbers(100), 1, shuffle=True)
        if states:
            loader.load_state_dict(states[-1])
        iterator = iter(loader)
        for _ in range(10):
            next(iterator)
        states.append(loader.state_dict())
    assert [state["consumed"] for state in states] == [10, 20, 30]
    assert {state["epoch"] for state in states} == {0}


def test_what_workers_loaded_ahead_does_not_count(shards, numbers):
    (loader,) = shards(1, numbers(64), 4, shuffle=True, num_workers=2, prefetch_factor=4)
    iterator = iter(loader)
    next(iterator)
    assert loader.state_dict()["consumed"] == 4


def test_leaving_an_epoch_early_begins_the_next(shards, numbers, batches):
    (loader,) = shards(1, numbers(8), 2)
    for _ in loader:
        break
    assert loader.epoch == 0
    assert batches(loader) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert loader.epoch == 1


def test_a_state_that_was_only_loaded_is_the_same_state(shards, numbers):
    (loader,) = shards(1, numbers(64), 4, shuffle=True)
    states = [checkpoint["loader"] for checkpoint in killed(loader, [], kill_after=20)]
    for state in [states[3], states[15], states[16], states[-1]]:
        (again,) = shards(1, numbers(64), 4, shuffle=True)
        again.load_state_dict(state)
        assert again.state_dict() == state


def test_persistent_workers_go_to_the_restored_place(shards, numbers, batches):
    arguments = {"shuffle": True, "num_workers": 2, "persistent_workers": True}
    (loader,) = shards(1, numbers(32), 4, **arguments)
    epochs = [batches(loader) for _ in range(3)]
    state = loader.state_dict() | {"epoch": 1, "consumed": 8, "finished": False}
    loader.load_state_dict(state)
    assert batches(loader) == epochs[1][2:]
    assert batches(loader) == epochs[2]


world_and_stop = st.tuples(st.integers(1, 4), st.integers(0, 12))


@settings(deadline=None, max_examples=50)
@given(st.integers(20, 60), st.lists(world_and_stop, max_size=3), st.integers(1, 4))
def test_another_number_of_ranks_continues_sample_exact(
    shards, numbers, batches, length, attempts, last_world
):
    seen, state = [], None
    for world, stop in [*attempts, (last_world, length)]:
        loaders = shards(world, numbers(length), 3, shuffle=True)
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(state)
        iterators = [iter(loader) for loader in loaders]
        for _ in range(stop):
            global_batch = [next(iterator, None) for iterator in iterators]
            if global_batch[0] is None:
                break
            seen += [number for batch in global_batch for number in batch.tolist()]
        states = {json.dumps(loader.state_dict()) for loader in loaders}
        assert len(states) == 1  # it is saved once for all ranks
        state = json.loads(states.pop())
    (whole,) = shards(1, numbers(length), length, shuffle=True)
    assert seen == batches(whole)[0][: len(seen)]
    assert length - len(seen) < max([last_world, *(world for world, _ in attempts)])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"length": 65}, "number of samples in the dataset: 64 was saved, 65 found"),
        ({"seed": 1}, "seed: 0 was saved, 1 found"),
        ({"shuffle": False, "train": True}, "order of samples: shuffled was saved, sequential"),
        ({"train": False}, "training rules: True was saved, False found"),
    ],
)
def test_other_data_are_refused_and_the_difference_named(shards, numbers, change, said):
    def loader(length=64, **arguments):
        return shards(1, numbers(length), 4, **{"shuffle": True, **arguments})[0]

    with pytest.raises(EnvironmentFaultError, match=said) as caught:
        loader(**change).load_state_dict(loader().state_dict())
    assert caught.value.exit_code == ExitCode.ENVIRONMENT == 78


def test_another_batch_size_goes_on_at_the_same_sample(shards, numbers, batches):
    (loader,) = shards(1, numbers(20), 4, train=True)
    next(iter(loader))
    (again,) = shards(1, numbers(20), 8, train=True)
    again.load_state_dict(loader.state_dict())
    assert batches(again) == [[*range(4, 12)], [*range(12, 20)]]


@pytest.mark.parametrize("state", [{}, {"epoch": 1, "step": 5}, "newer"])
def test_what_is_no_state_of_a_loader_is_refused(shards, numbers, state):
    (loader,) = shards(1, numbers(20), 4, train=True)
    if state == "newer":
        state = loader.state_dict() | {"format": 99}
    with pytest.raises(DataError, match="expected a loader's state of format 1"):
        loader.load_state_dict(state)
