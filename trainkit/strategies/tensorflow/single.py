"""One process: on the CPU, on a GPU, or on all GPUs that it sees."""

from typing import Any, ClassVar

import tensorflow as tf

from trainkit.coordination import Communicator
from trainkit.errors import StrategyError
from trainkit.strategies.tensorflow.base import TensorFlowStrategy, keep_lines_single, limit_devices
from trainkit.strategies.tensorflow.desk import TrainingEnd
from trainkit.strategies.tensorflow.loader import Loader, ReplicaLoader, epoch_length, from_user
from trainkit.strategies.tensorflow.tasks import control_address
from trainkit.topology import Role, Topology

__all__ = ["Single"]


class Single(TensorFlowStrategy):
    """TensorFlow in one process, with one replica a GPU; also what an evaluator runs under."""

    name: ClassVar[str] = "single"

    def __init__(self) -> None:
        """Prepare."""
        self._end: TrainingEnd | None = None

    def connect(self, topology: Topology, timeout: float) -> None:
        """See ``Strategy.connect``; refuses a world of more than one rank."""
        del timeout
        if topology.world_size != 1:
            raise StrategyError(
                f"strategy='single' in a job of {topology.world_size} ranks would train "
                f"{topology.world_size} times alone. Use strategy='multi_worker' or 'auto'."
            )
        keep_lines_single()
        limit_devices(topology)
        if len(tf.config.list_logical_devices("GPU")) > 1:
            self._native = tf.distribute.MirroredStrategy()
        else:
            self._native = tf.distribute.get_strategy()
        self.communicator = Communicator.solo()
        if topology.role is Role.EVALUATOR:
            self._end = _end_of_training(topology)

    def loader(self, dataset: Any, *, train: bool) -> Loader:
        """See ``TensorFlowStrategy.loader``."""
        replicas = self._native.num_replicas_in_sync
        data = from_user(dataset, 0, 1)
        return ReplicaLoader(
            self._native, data, epoch_length(data, replicas), batches_a_step=replicas
        )

    @property
    def training_over(self) -> bool:
        """In an evaluator: whether the chief has said that it is done."""
        return self._end is not None and self._end.heard

    def close(self, *, failed: bool = False) -> None:
        """See ``Strategy.close``."""
        if self._end is not None:
            self._end.close()
        super().close(failed=failed)


def _end_of_training(topology: Topology) -> TrainingEnd | None:
    address = control_address(topology)
    return None if address is None else TrainingEnd(address)
