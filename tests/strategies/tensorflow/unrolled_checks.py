"""Copies of a traced step: each does what a call of the function would have done, in turn.

Run by test_unrolled.py in a process with TensorFlow, each by its name.
"""

from pathlib import Path

import pytest
import tensorflow as tf

from trainkit.strategies.tensorflow.dispatch import _unrolled_steps
from trainkit.strategies.tensorflow.graphs import draws_by_seed
from trainkit.strategies.tensorflow.unrolled import Unrolled


def several(step, *arguments, times=3):
    """What ``step`` returns when it is copied ``times`` times, and how often it was traced."""
    traces = []

    @tf.function
    def once(*arguments):
        traces.append(1)
        return step(*arguments)

    @tf.function
    def run(*arguments):
        unrolled = Unrolled(once.get_concrete_function(*arguments))
        return [unrolled.put(arguments) for _ in range(times)]

    found = run(*arguments)
    assert len(traces) == 1
    return tf.nest.map_structure(lambda one: one.numpy(), found)


def each_sees_what_the_one_before_changed(folder: Path) -> None:
    count, double = tf.Variable(0), tf.Variable(1.0)

    def step(x):
        count.assign_add(1)
        double.assign(double * x)
        return {"count": count.read_value(), "double": [double.read_value()]}

    assert several(step, tf.constant(2.0)) == [{"count": n, "double": [2.0**n]} for n in (1, 2, 3)]
    assert (int(count), float(double)) == (3, 8.0)


def each_takes_the_next_of_an_iterator(folder: Path) -> None:
    assert several(lambda numbers: next(numbers), iter(tf.data.Dataset.range(9))) == [0, 1, 2]


def conditions_loops_and_functions_come_along(folder: Path) -> None:
    total = tf.Variable(0)

    @tf.function
    def add(number):
        total.assign_add(number)
        return total.read_value()

    def step(number):
        for _ in tf.range(number):
            total.assign_add(1)
        if total > 5:
            return add(100)
        return add(10)

    assert several(step, tf.constant(2)) == [12, 114, 216]


def what_was_captured_or_given_may_be_returned(folder: Path) -> None:
    ten, table = (
        tf.constant(10),
        tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a"], [7]), -1),
    )
    assert (
        several(lambda key: (key, ten, table.lookup(key)), tf.constant("a"), times=2)
        == [(b"a", 10, 7)] * 2
    )


def each_draws_random_numbers_of_its_own(folder: Path) -> None:
    generator = tf.random.Generator.from_seed(3)
    expected = [generator.normal([]).numpy() for _ in range(3)]
    generator.reset_from_seed(3)
    assert several(lambda: generator.normal([])) == expected
    assert len({float(one) for one in several(lambda: tf.random.uniform([]))}) == 3


def seeds_are_found_wherever_they_are(folder: Path) -> None:
    """Copies of what a seed decides would draw the same numbers in each step of an execution."""
    seeded = tf.function(lambda: tf.random.normal([], seed=3))
    once = {
        "plain": lambda: tf.random.uniform([], seed=3),
        "function": lambda: seeded(),
        "branch": lambda: tf.cond(tf.constant(1) > 0, lambda: seeded(), lambda: 0.0),
        "dropout": lambda: tf.nn.dropout([1.0], 0.5, seed=3),
        "random": lambda: tf.random.uniform([]),
        "stateless": lambda: tf.random.stateless_uniform([], seed=(1, 2)),
    }
    found = {
        name: draws_by_seed(tf.function(step).get_concrete_function().graph.as_graph_def())
        for name, step in once.items()
    }
    assert [name for name in found if not found[name]] == ["random", "stateless"]


def several_steps_that_draw_by_a_seed_draw_different_numbers(folder: Path) -> None:
    strategy = tf.distribute.get_strategy()
    batches = iter(tf.data.Dataset.range(99))
    tf.random.set_seed(7)
    try:
        run = _unrolled_steps(strategy, lambda batch: (batch, tf.random.uniform([])))
        drawn = [run(batches, 4) for _ in range(2)]
    finally:
        tf.random.set_seed(None)
    assert [int(i) for numbers, _ in drawn for i in numbers] == list(range(8))
    assert len({float(one) for _, some in drawn for one in some}) == 8


def a_step_that_returns_nothing(folder: Path) -> None:
    count = tf.Variable(0)

    def step():
        count.assign_add(2)
        return ()

    assert several(step) == [(), (), ()]
    assert int(count) == 6


def a_model_of_keras_trains_as_by_calls(folder: Path) -> None:
    data = tf.random.stateless_normal((8, 4), seed=(1, 2))

    def trained(run):
        tf.keras.utils.set_random_seed(7)
        model = tf.keras.Sequential(
            [
                tf.keras.layers.Input((4,)),
                tf.keras.layers.Dense(8),
                tf.keras.layers.BatchNormalization(),
                tf.keras.layers.Dropout(0.5),
                tf.keras.layers.Dense(1),
            ]
        )
        optimizer = tf.keras.optimizers.Adam(0.01)
        optimizer.build(model.trainable_variables)

        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(model(x, training=True) ** 2)
            variables = model.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return loss

        losses = run(step)
        return [float(loss) for loss in losses], [one.numpy().tolist() for one in model.weights]

    def by_calls(step):
        once = tf.function(step)
        return [once(data) for _ in range(4)]

    losses, weights = trained(lambda step: several(step, data, times=4))
    expected, others = trained(by_calls)
    assert losses == pytest.approx(expected)
    for mine, other in zip(weights, others, strict=True):
        assert tf.reduce_max(tf.abs(tf.constant(mine) - tf.constant(other))) < 1e-5


def a_variable_waits_for_nothing_but_the_step_before(folder: Path) -> None:
    total = tf.Variable(0.0)

    @tf.function
    def once():
        total.assign_add(1.0)
        return total.read_value()

    @tf.function
    def run():
        unrolled = Unrolled(once.get_concrete_function())
        return [unrolled.put(()) for _ in range(2)]

    found = run.get_concrete_function().graph.get_operations()
    assert not [op for op in found if "PartitionedCall" in op.type]
    adds = [op for op in found if op.type == "AssignAddVariableOp"]
    reads = [op for op in found if op.type == "ReadVariableOp"]
    assert len(adds) == len(reads) == 2
    assert adds[0] in reads[0].control_inputs
    assert reads[0] in adds[1].control_inputs
