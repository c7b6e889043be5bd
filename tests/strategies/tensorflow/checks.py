"""What loaders and models are held to, in a process with TensorFlow; each is run by its name."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from trainkit.errors import EnvironmentFaultError, PeerLostError, StrategyError, UsageError
from trainkit.strategies.tensorflow.additions import whole_additions
from trainkit.strategies.tensorflow.dispatch import DispatchLoader
from trainkit.strategies.tensorflow.loader import ReplicaLoader, from_user, part_of
from trainkit.strategies.tensorflow.losses import peer_losses, unwrapped
from trainkit.strategies.tensorflow.multi_worker import MultiWorker
from trainkit.strategies.tensorflow.single import Single
from trainkit.topology import Topology

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


def connected() -> Single:
    strategy = Single()
    strategy.connect(Topology(platform="local"), 10)
    return strategy


def ids(*, seed=3, batch=2, size=16):
    return tf.data.Dataset.range(size).shuffle(size, seed=seed).batch(batch)


def seen(loader, **arguments):
    """(steps done, ids of the steps since the last time) of each turn of the loop."""
    steps = loader.steps(lambda batch: batch, **arguments)
    return [(done, found.numpy().tolist()) for done, found in steps]


def steps_are_those_of_a_plain_loop(folder: Path) -> None:
    loader = connected().loader(ids(), train=True)
    assert len(loader) == 8
    found = seen(loader, start=0, stop=20, steps_per_execution=6)
    assert [done for done, _ in found] == [6, 12, 18, 20]
    batches = [batch for _, some in found for batch in some]
    epochs = [[i for batch in batches[begin : begin + 8] for i in batch] for begin in (0, 8)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(16))] * 2
    assert epochs[0] != epochs[1], "it is shuffled anew"


def one_step_updates_variables_once(folder: Path) -> None:
    total = tf.Variable(0, dtype=tf.int64)

    def step(batch):
        total.assign_add(tf.reduce_sum(batch))
        return {"total": total.read_value(), "nested": [tf.constant(1.0)]}

    loader = connected().loader(tf.data.Dataset.range(1, 5).batch(1), train=True)
    (_, found), (_, last) = loader.steps(step, stop=4, steps_per_execution=3)
    assert found["total"].numpy().tolist() == [1, 3, 6]
    assert last["total"].numpy().tolist() == [10]
    assert last["nested"][0].shape == (1,)


def a_step_may_return_nothing(folder: Path) -> None:
    loader = connected().loader(ids(), train=True)
    assert list(loader.steps(lambda batch: None, stop=2)) == [(1, None), (2, None)]


def nothing_among_what_a_step_returns_is_refused(folder: Path) -> None:
    loader = connected().loader(ids(), train=True)
    for steps in (1, 2):
        turns = loader.steps(
            lambda batch: {"loss": tf.reduce_sum(batch), "aux": None},
            stop=2,
            steps_per_execution=steps,
        )
        with pytest.raises(StrategyError, match=r"a step returned .*'aux': 'NoneType'.*without"):
            next(turns)


def a_loader_goes_on_where_it_was(folder: Path) -> None:
    unshuffled = tf.data.Dataset.range(10).batch(2)
    first = connected().loader(unshuffled, train=True)
    seen(first, stop=3)
    second = connected().loader(unshuffled, train=True)
    second.load_state_dict(first.state_dict())
    assert seen(second, start=3, stop=6) == [(4, [[6, 7]]), (5, [[8, 9]]), (6, [[0, 1]])]


def a_job_of_another_size_goes_on_behind_the_batches_of_all_ranks(folder: Path) -> None:
    whole = tf.data.Dataset.range(16).batch(2)

    def of(rank, ranks):
        part = part_of(whole, rank, ranks, train=True)
        strategy = tf.distribute.get_strategy()
        return ReplicaLoader(strategy, part, None, batches_a_step=1, ranks=ranks)

    pair = [of(rank, 2) for rank in range(2)]
    assert [seen(one, stop=2)[-1] for one in pair] == [(2, [[4, 5]]), (2, [[6, 7]])]
    one = of(0, 1)
    one.load_state_dict(pair[0].state_dict())
    assert seen(one, start=2, stop=4) == [(3, [[8, 9]]), (4, [[10, 11]])]
    for rank, rest in ((0, [[12, 13]]), (1, [[14, 15]])):
        back = of(rank, 2)
        back.load_state_dict(one.state_dict())
        assert seen(back, start=4, stop=5) == [(5, rest)]


def parts_are_disjoint_whole_and_of_one_length(folder: Path) -> None:
    parts = [list(part_of(ids(batch=3), rank, 2, train=True)) for rank in range(2)]
    assert [len(part) for part in parts] == [3, 3]
    found = [int(i) for part in parts for batch in part for i in batch]
    assert sorted(found) == list(range(16))
    odd = ids(batch=4, size=20)  # five batches: the last one is left out in training only
    train = [len(list(part_of(odd, rank, 2, train=True))) for rank in range(2)]
    test = [len(list(part_of(odd, rank, 2, train=False))) for rank in range(2)]
    assert (train, test) == ([2, 2], [3, 2])


def data_that_would_overlap_is_refused(folder: Path) -> None:
    for dataset, words in (
        (tf.data.Dataset.range(8).shuffle(8).batch(2), "without a seed"),
        (tf.data.Dataset.range(8).shuffle(8).map(lambda i: i).batch(2).prefetch(1), "a seed"),
        (tf.data.Dataset.range(2).flat_map(lambda _: ids(seed=None)), "without a seed"),
        (ids(batch=16), "1 batches"),
        (ids().filter(lambda batch: batch[0] > 3), "not known"),
    ):
        with pytest.raises(StrategyError, match=words):
            part_of(dataset, 0, 2, train=True)
    part_of(ids(seed=None), 0, 1, train=True)  # one process alone
    tf.random.set_seed(7)
    try:
        part_of(ids(seed=None), 0, 2, train=True)  # all processes are seeded alike
    finally:
        tf.random.set_seed(None)


def a_function_is_told_which_part_it_makes(folder: Path) -> None:
    made = from_user(lambda context: ids().shard(2, context.input_pipeline_id), 1, 2)
    assert len(list(made)) == 4
    with pytest.raises(StrategyError, match=r"takes a tf.data.Dataset .* not list"):
        from_user([1, 2], 0, 1)
    with pytest.raises(StrategyError, match="not ndarray"):
        from_user(lambda context: np.zeros(3), 0, 1)


def numbers_that_cannot_be_meant_are_refused(folder: Path) -> None:
    loader = connected().loader(ids(), train=True)
    with pytest.raises(UsageError, match="steps_per_execution=0"):
        next(loader.steps(lambda batch: batch, stop=3, steps_per_execution=0))
    with pytest.raises(TypeError, match="has no length"):
        len(connected().loader(ids().repeat(), train=True))


def several_devices_take_a_batch_each(folder: Path) -> None:
    cpu = tf.config.list_logical_devices("CPU")
    mirrored = tf.distribute.MirroredStrategy([device.name for device in cpu])
    loader = ReplicaLoader(mirrored, tf.data.Dataset.range(8).batch(2), 2, batches_a_step=len(cpu))
    assert len(cpu) == 2
    assert seen(loader, stop=2, steps_per_execution=2) == [(2, [[0, 1, 2, 3], [4, 5, 6, 7]])]
    assert loader.state_dict() == {"batches": 4}


def a_model_of_another_scope_is_refused(folder: Path) -> None:
    cpu = [device.name for device in tf.config.list_logical_devices("CPU")]
    strategy = connected()
    strategy._native = tf.distribute.MirroredStrategy(cpu)
    keras = tf.keras

    def make():
        return keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])

    with strategy.native.scope():
        inside = make()
    assert strategy.setup(inside) is inside
    with pytest.raises(StrategyError, match="outside of the strategy's scope"):
        strategy.setup(make())
    with pytest.raises(StrategyError, match="not dict"):
        strategy.setup({})


def errors_of_lost_processes_name_them(folder: Path) -> None:
    gone = tf.errors.UnavailableError(None, None, "Socket closed /job:ps/replica:0/task:1 x\ny")
    lost = pytest.raises(PeerLostError, match=r"ps 1 was lost in step 4: Socket closed")
    with lost, peer_losses("step 4"):
        raise gone
    with pytest.raises(tf.errors.InvalidArgumentError), peer_losses("step 4"):
        raise tf.errors.InvalidArgumentError(None, None, "shapes differ")


def data_of_python_is_refused_where_workers_have_no_python(folder: Path) -> None:
    """The chief would wait for a worker that waits for the chief's Python."""
    spec = tf.TensorSpec((), tf.int64)

    def generated(context=None):
        return tf.data.Dataset.from_generator(lambda: iter(range(8)), output_signature=spec).batch(
            2
        )

    def mapped(context=None):
        return ids().map(lambda batch: tf.py_function(abs, [batch], tf.int64))

    for make in (generated, mapped):
        with pytest.raises(StrategyError, match=r"calls Python \(from_generator"):
            DispatchLoader(None, make(), 2, train=True)
        DispatchLoader(None, make(), 2, train=False)  # by the chief alone
        loader = DispatchLoader(None, make, 2, train=True)
        with pytest.raises(StrategyError, match="calls Python"), unwrapped():
            tf.function(loader._of_a_worker()).get_concrete_function()


def additions_of_keras_are_whole_while_steps_are_traced(folder: Path) -> None:
    """Workers add to one variable at the same time: reading it first loses what others add."""
    import keras

    before = dict(vars(keras.Variable))
    count = keras.Variable(0, dtype="int64")

    def add():
        count.assign_add(2)
        return count.assign_sub(1)

    with whole_additions():
        traced = tf.function(add).get_concrete_function()
    found = [node.op for node in traced.graph.as_graph_def().node]
    assert "AssignAddVariableOp" in found
    assert "AssignSubVariableOp" in found
    assert "AssignVariableOp" not in found
    assert (int(traced()), int(traced()), int(count.value)) == (1, 2, 2)
    with whole_additions(), keras.StatelessScope() as scope:
        count.assign_add(5)
    assert (int(scope.get_current_value(count)), int(count.value)) == (7, 2)
    assert dict(vars(keras.Variable)) == before


def a_worker_that_is_lost_while_all_connect_is_no_fault_of_this_host(folder: Path) -> None:
    def lost(resolver):
        raise tf.errors.UnavailableError(None, None, "Socket closed /job:worker/task:1")

    strategy, whole = MultiWorker(), tf.distribute.MultiWorkerMirroredStrategy
    tf.distribute.MultiWorkerMirroredStrategy = lost
    try:
        with pytest.raises(PeerLostError, match="worker 1 was lost in connecting"):
            strategy.connect(Topology(platform="local"), 10)
    finally:
        strategy.close(failed=True)
        shutil.rmtree(Path(tempfile.gettempdir()) / f"trainkit-{os.getuid()}")
        tf.distribute.MultiWorkerMirroredStrategy = whole


def one_process_refuses_a_world(folder: Path) -> None:
    with pytest.raises(StrategyError, match="train 2 times alone"):
        Single().connect(Topology(platform="env", rank=0, world_size=2), 10)


def a_gpu_that_was_asked_for_is_not_replaced_by_the_cpu(folder: Path) -> None:
    from trainkit.config import set_environ

    set_environ({"TRAINKIT_DEVICE": "cuda"})
    try:
        with pytest.raises(EnvironmentFaultError, match=r"sees 0 GPUs, .*TRAINKIT_DEVICE=cuda"):
            connected()
    finally:
        set_environ({"TRAINKIT_DEVICE": None})
