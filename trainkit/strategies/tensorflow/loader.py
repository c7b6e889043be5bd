"""A rank's part of a Dataset, and the loop that trains on it, several steps at a time."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from trainkit.errors import StrategyError, UsageError
from trainkit.strategies.tensorflow.graphs import graph_of, is_shuffled_at_random
from trainkit.strategies.tensorflow.losses import peer_losses, unwrapped

__all__ = ["Loader", "ReplicaLoader", "several_steps"]

_MULTI_WORKER = tf.distribute.MultiWorkerMirroredStrategy

Step = Callable[[Any], Any]
"""One optimizer step: a batch → a tensor, a structure of tensors, or None."""


class Loader(ABC):
    """What ``ctx.setup_dataloader`` returns for a ``tf.data.Dataset``.

    Iterating over it gives this rank's batches once. ``steps`` trains, repeating the data as
    often as needed. In a checkpoint it remembers how many batches were trained on by all ranks, so
    that a job of another size goes on behind them.
    """

    def __init__(self, length: int | None) -> None:
        """Wrap.

        Args:
            length: steps of an epoch; None where the data has no end, or none that is known.
        """
        self._length = length
        self._consumed = 0

    def __len__(self) -> int:
        """Steps of an epoch.

        Raises:
            TypeError: the data has no end, or its length is not known.
        """
        if self._length is None:
            raise TypeError("a Dataset without an end, or of unknown cardinality, has no length")
        return self._length

    @abstractmethod
    def __iter__(self) -> Iterator[Any]:
        """This rank's batches, once."""

    @abstractmethod
    def steps(
        self, step: Step, *, start: int = 0, stop: int, steps_per_execution: int = 1
    ) -> Iterator[tuple[int, Any]]:
        """Train up to the step ``stop``.

        Args:
            step: one optimizer step in TensorFlow's ops: takes a batch, updates variables, and
                returns a tensor or a structure of them (the loss, say), of the same shape each
                time. It is compiled, and runs on each replica of ``ctx.native``.
            start: steps that were done before.
            stop: steps of the whole run.
            steps_per_execution: how many steps run without coming back to Python.

        Yields:
            (steps done so far, what ``step`` returned with a first axis over the steps done since
            the last time). While the loop's body runs, nobody changes variables, so that it is
            the place for checkpoints.

        Raises:
            PeerLostError: a process of the job is gone; its name is in the message.
        """

    def state_dict(self) -> dict[str, int]:
        """How far the data was read: for checkpoints."""
        return {"batches": self._consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches that were trained on; before ``steps``."""
        self._consumed = int(state["batches"])


class ReplicaLoader(Loader):
    """Every rank computes each step together with the others, each on a batch of its own."""

    def __init__(
        self,
        strategy: Any,
        dataset: Any,
        length: int | None,
        *,
        batches_a_step: int,
        ranks: int = 1,
    ) -> None:
        """Wrap.

        Args:
            strategy: TensorFlow's.
            dataset: this rank's part.
            length: steps of an epoch.
            batches_a_step: devices of this rank: each takes a batch a step.
            ranks: how many take their batches in step, each from its own part.
        """
        super().__init__(length)
        self._strategy = strategy
        self._dataset = dataset
        self._batches_a_step = batches_a_step
        self._ranks = ranks

    def __iter__(self) -> Iterator[Any]:
        return iter(self._dataset)

    def steps(
        self, step: Step, *, start: int = 0, stop: int, steps_per_execution: int = 1
    ) -> Iterator[tuple[int, Any]]:
        """See ``Loader.steps``."""
        check_steps(start, stop, steps_per_execution)
        batches = iter(self._endless())
        run = several_steps(self._strategy, step)
        done = start
        while done < stop:
            count = min(steps_per_execution, stop - done)
            with peer_losses(f"step {done + 1}"), unwrapped():
                result = run(batches, tf.constant(count))
            done += count
            self._consumed += count * self._batches_a_step * self._ranks
            yield done, without_nothing(result)

    def _endless(self) -> Any:
        data = self._dataset.repeat().skip(self._consumed // self._ranks)
        if isinstance(self._strategy, tf.distribute.MirroredStrategy | _MULTI_WORKER):
            return self._strategy.distribute_datasets_from_function(lambda _: data)
        return data


def check_steps(start: int, stop: int, steps_per_execution: int) -> None:
    """Refuse numbers that cannot be meant.

    Raises:
        UsageError: one of them is out of range.
    """
    if steps_per_execution < 1:
        raise UsageError(f"steps_per_execution={steps_per_execution}: expected 1 or more")
    if start < 0 or stop < 0:
        raise UsageError(f"start={start}, stop={stop}: expected 0 or more steps")


def several_steps(strategy: Any, step: Step) -> Any:
    """A ``tf.function`` of an iterator and a number of steps, which returns their results.

    The loop is one of TensorFlow's, so that only its end comes back to whoever calls it.
    """
    once = one_step(strategy, step)

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def several(batches: Any, count: Any) -> Any:
        return in_a_loop(once, batches, count)

    return several


def in_a_loop(once: Any, batches: Any, count: Any) -> Any:
    """What ``count`` calls of ``once`` return, one after another in a loop of TensorFlow's."""
    shape = once.get_concrete_function(batches).structured_outputs
    arrays = tf.nest.map_structure(
        lambda one: tf.TensorArray(one.dtype, size=count, element_shape=one.shape), shape
    )

    def body(index: Any, arrays: Any) -> tuple[Any, Any]:
        values = once(batches)
        written = tf.nest.map_structure(
            lambda array, value: array.write(index, value), arrays, values
        )
        return index + 1, written

    _, arrays = tf.while_loop(
        lambda index, _: index < count, body, (0, arrays), parallel_iterations=1
    )
    return tf.nest.map_structure(lambda array: array.stack(), arrays)


def one_step(strategy: Any, step: Step) -> Any:
    """A ``tf.function`` of an iterator: a step on its next batch, on all replicas."""

    @tf.function  # type: ignore[untyped-decorator]
    def once(batches: Any) -> Any:
        returned = strategy.run(step, args=(next(batches),))
        if returned is None:
            return ()
        if any(value is None for value in tf.nest.flatten(returned)):
            raise StrategyError(
                f"a step returned {_shown(returned)}: expected a tensor, a structure of tensors "
                f"without None in it, or None alone. Leave out what there is nothing of."
            )
        return tf.nest.map_structure(lambda value: _of_all_replicas(strategy, value), returned)

    return once


def without_nothing(result: Any) -> Any:
    """None for the empty structure, which stands for it within TensorFlow's loops."""
    return None if isinstance(result, tuple) and not result else result


def _shown(returned: Any) -> str:
    """A structure with the types of its values, for messages."""
    return str(tf.nest.map_structure(lambda value: type(value).__name__, returned))


def _of_all_replicas(strategy: Any, value: Any) -> Any:
    """What the replicas of this process returned: one value, or all of them side by side."""
    values = strategy.experimental_local_results(value)
    if len(values) == 1:
        return tf.convert_to_tensor(values[0])
    return tf.concat([tf.reshape(one, [-1, *one.shape[1:]]) for one in values], 0)


def part_of(dataset: Any, index: int, count: int, *, train: bool) -> Any:
    """Every ``count``-th batch from ``index`` on: each batch goes to one process.

    In training all processes get the same number of batches; fewer than ``count`` are left out.

    Raises:
        StrategyError: parts would overlap, or would not be of one length.
    """
    if count == 1:
        return dataset
    refuse_what_overlaps(dataset, count)
    length = int(dataset.cardinality())
    if train and length == tf.data.UNKNOWN_CARDINALITY:
        raise StrategyError(
            f"the number of batches of the Dataset is not known, and {count} processes must each "
            f"have as many: add .repeat(), or .apply(tf.data.experimental.assert_cardinality(n))."
        )
    if train and length > 0:
        dataset = dataset.take(length - length % count)
    return dataset.shard(count, index)


def refuse_what_overlaps(dataset: Any, count: int) -> None:
    """Refuse data that ``count`` processes would each read in an order of their own.

    Raises:
        StrategyError: it is shuffled without a seed, or there is less of it than processes.
    """
    length = int(dataset.cardinality())
    if 0 <= length < count:
        raise StrategyError(
            f"the Dataset has {length} batches, which do not suffice for {count} processes with a "
            f"batch each: make batches smaller, or the job."
        )
    if count > 1 and is_shuffled_at_random(graph_of(dataset)):
        raise StrategyError(
            "the Dataset is shuffled without a seed: each process would shuffle in its own way, "
            "and their parts would overlap. Give shuffle(…, seed=…), or trainkit.run(seed=…)."
        )


def from_user(dataset: Any, index: Any, count: int) -> Any:
    """The Dataset that was given, or what the function that was given returns.

    Raises:
        StrategyError: it is neither.
    """
    if isinstance(dataset, tf.data.Dataset):
        return dataset
    if callable(dataset):
        made = dataset(
            tf.distribute.InputContext(num_input_pipelines=count, input_pipeline_id=index)
        )
        if isinstance(made, tf.data.Dataset):
            return made
        dataset = made
    raise StrategyError(
        f"ctx.setup_dataloader() takes a tf.data.Dataset of batches, or a function of an "
        f"InputContext that returns one, not {type(dataset).__name__}"
    )


def epoch_length(dataset: Any, batches_a_step: int) -> int | None:
    """Steps of an epoch; None where it is not known."""
    length = int(dataset.cardinality())
    return length // batches_a_step if length >= 0 else None
