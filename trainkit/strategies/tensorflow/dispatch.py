"""Steps that the chief hands out to workers, several at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf

from trainkit.errors import StrategyError
from trainkit.strategies.tensorflow.additions import whole_additions
from trainkit.strategies.tensorflow.graphs import (
    draws_by_seed,
    graph_of,
    runs_python,
    serialized,
)
from trainkit.strategies.tensorflow.loader import (
    Loader,
    Step,
    check_steps,
    epoch_length,
    from_user,
    in_a_loop,
    one_step,
    refuse_what_overlaps,
    without_nothing,
)
from trainkit.strategies.tensorflow.losses import is_loss, lost_tasks, peer_losses, unwrapped
from trainkit.strategies.tensorflow.unrolled import Unrolled

__all__ = ["DispatchLoader"]

_EACH = 2
"""Executions a worker and round: while one is computed the next one is on its way."""


class DispatchLoader(Loader):
    """Steps run on the workers, each on the next batch of its worker's part of the data.

    A round is a few executions for each worker; whoever is free takes the next one. An execution
    of a worker that dies is done again by another, so a few of its steps may count twice. Its
    part of the data is left out until it is back.
    What the steps of a dying worker returned may be missing from the results.
    """

    def __init__(self, coordinator: Any, dataset: Any, workers: int, *, train: bool) -> None:
        """Wrap.

        Args:
            coordinator: TensorFlow's ``ClusterCoordinator``.
            dataset: of all workers, or a function of an ``InputContext`` that returns a worker's.
            workers: how many there are.
            train: whether workers are to read it, or the chief alone.
        """
        self._coordinator = coordinator
        self._workers = workers
        self._dataset = dataset
        self._whole = isinstance(dataset, tf.data.Dataset)
        self._train = train
        if not self._whole and not callable(dataset):
            from_user(dataset, 0, 1)  # raises
        if self._whole and train:
            refuse_what_overlaps(dataset, workers)
            _refuse_python(graph_of(dataset))
        super().__init__(epoch_length(dataset, 1) if self._whole else None)

    def __iter__(self) -> Iterator[Any]:
        return iter(from_user(self._dataset, 0, 1))

    def steps(
        self, step: Step, *, start: int = 0, stop: int, steps_per_execution: int = 1
    ) -> Iterator[tuple[int, Any]]:
        """See ``Loader.steps``."""
        check_steps(start, stop, steps_per_execution)
        if not self._train:
            raise StrategyError("this data is for evaluation: ctx.setup_dataloader(…, train=True)")
        run = _unrolled_steps(self._coordinator.strategy, step)
        done = start
        with _worker_losses(done):
            data = self._coordinator.create_per_worker_dataset(self._of_a_worker())
            batches = iter(data)
        while done < stop:
            counts = _shares(stop - done, steps_per_execution, self._workers * _EACH)
            with _worker_losses(done):
                values = [
                    self._coordinator.schedule(run, args=(batches, count)) for count in counts
                ]
                self._coordinator.join()
                results = list(_fetched(values))
            done += sum(counts)
            self._consumed += sum(counts)
            if results:
                whole = tf.nest.map_structure(lambda *some: tf.concat(some, 0), *results)
                yield done, without_nothing(whole)

    def _of_a_worker(self) -> Any:
        """A function that makes a worker's data, where it runs."""
        workers, skipped = self._workers, self._consumed // self._workers
        if not self._whole:

            def own() -> Any:
                made = from_user(self._dataset, _own_index(), workers)
                _refuse_python(tf.compat.v1.get_default_graph().as_graph_def())
                return made.repeat().skip(skipped)

            return own
        graph, spec = serialized(self._dataset), self._dataset.element_spec

        def part() -> Any:
            made = tf.raw_ops.DatasetFromGraph(graph_def=graph)
            whole = tf.data.experimental.from_variant(made, spec)
            return whole.shard(workers, _own_index()).repeat().skip(skipped)

        return part


def _unrolled_steps(strategy: Any, step: Step) -> Any:
    """As ``several_steps``, one after another and not in a loop; of a number known to Python.

    In a loop of TensorFlow's that reaches over several processes each turn costs messages of its
    own, twice as much as the step of a small model. A step that draws random numbers by a seed
    takes the loop all the same: copies of it would all draw the same ones.
    """
    once = one_step(strategy, step)

    @tf.function  # type: ignore[untyped-decorator]
    def several(batches: Any, count: int) -> Any:
        with whole_additions():
            traced = once.get_concrete_function(batches)
        if draws_by_seed(traced.graph.as_graph_def()):
            return in_a_loop(once, batches, count)
        unrolled = Unrolled(traced)
        values = [unrolled.put(batches) for _ in range(count)]
        return tf.nest.map_structure(lambda *some: tf.stack(some), *values)

    return several


def _fetched(values: list[Any]) -> Iterator[Any]:
    """What executions returned, but for those of a worker that has died since: its steps count."""
    for value in values:
        try:
            with unwrapped():
                found = value.fetch()
        except tf.errors.OpError as error:
            tasks = lost_tasks(error)
            if not is_loss(error) or not tasks or any(task.startswith("ps") for task in tasks):
                raise
            continue
        yield found


def _refuse_python(graph: Any) -> None:
    """Refuse data that comes from Python, which a worker would have to ask the chief for.

    The chief waits for the worker meanwhile, and neither goes on.

    Raises:
        StrategyError: there is such an operation in ``graph``.
    """
    if runs_python(graph):
        raise StrategyError(
            "the Dataset calls Python (from_generator, py_function or numpy_function), which "
            "workers of parameter_server have none of: read files by operations of tf.data "
            "(TFRecordDataset, map with tf.io and tf.image), or use strategy='multi_worker'."
        )


def _own_index() -> Any:
    """Of the worker on which this runs."""
    return tf.distribute.coordinator.experimental_get_current_worker_index()


def _shares(steps: int, most: int, executions: int) -> list[int]:
    """Steps of each execution of a round; only the last may be of fewer than ``most``."""
    whole = min(steps, most * executions)
    return [min(most, whole - begin) for begin in range(0, whole, most)]


@contextmanager
def _worker_losses(done: int) -> Iterator[None]:
    """As ``peer_losses``, also of the coordinator's errors."""
    with peer_losses(f"step {done + 1}"), unwrapped():
        yield
