"""Parameter servers: variables live with them, workers compute steps, the chief hands them out."""

import logging
from typing import Any, ClassVar

import tensorflow as tf

from trainkit.coordination import Communicator, StepAgreement
from trainkit.coordination.network import port_holder
from trainkit.errors import EnvironmentFaultError, StrategyError
from trainkit.strategies.base import Duty
from trainkit.strategies.tensorflow.base import (
    TensorFlowStrategy,
    keep_lines_single,
    signals_kept,
)
from trainkit.strategies.tensorflow.desk import Desk
from trainkit.strategies.tensorflow.dispatch import DispatchLoader
from trainkit.strategies.tensorflow.loader import Loader
from trainkit.strategies.tensorflow.losses import first_line, peer_losses
from trainkit.strategies.tensorflow.serving import serve
from trainkit.strategies.tensorflow.tasks import Tasks, control_address
from trainkit.topology import Role, Topology
from trainkit.waiting import Deadline

__all__ = ["ParameterServer"]

log = logging.getLogger(__name__)


class ParameterServer(TensorFlowStrategy):
    """``tf.distribute.ParameterServerStrategy``, led by the chief (without one: worker 0).

    Only the chief runs the user's ``main``, as a job of one rank. Steps run on the workers at the
    same time, and on variables that others change meanwhile.
    """

    name: ClassVar[str] = "parameter_server"

    def __init__(self, *, variable_partitioner: Any = None) -> None:
        """Prepare.

        Args:
            variable_partitioner: cuts large variables over the parameter servers, such as one of
                ``tf.distribute.experimental.partitioners``. Without it each variable lives whole on
                one of them, by turns. Keras 3 cannot train variables that are cut.
        """
        self._partitioner = variable_partitioner
        self._desk: Desk | None = None
        self._coordinator: Any = None
        self._finished = False

    @classmethod
    def duty(cls, topology: Topology) -> Duty:
        """See ``Strategy.duty``: the chief trains, workers and parameter servers serve."""
        if topology.role is Role.EVALUATOR:
            return Duty.EVALUATE
        return Duty.TRAIN if topology.rank == 0 else Duty.SERVE

    def serve(self, topology: Topology, timeout: float) -> None:
        """See ``Strategy.serve``."""
        serve(topology, timeout)

    def connect(self, topology: Topology, timeout: float) -> None:
        """See ``Strategy.connect``: on the chief."""
        keep_lines_single()
        deadline = Deadline(timeout)
        address = control_address(topology)
        if address is None:
            raise StrategyError(
                f"parameter_server needs a cluster of chief, worker and ps, and "
                f"{topology.platform} describes none: run it as a TFJob, or set TF_CONFIG."
            )
        tasks = Tasks.of(topology)
        self._desk = Desk.open(tasks, address[1], deadline)
        self._native = _connected(tasks, self._partitioner)
        if self._native.num_replicas_in_sync > 1:
            raise StrategyError(
                f"each worker has {self._native.num_replicas_in_sync} GPUs, and a step runs on one "
                f"of them: ask for one GPU a worker, and for more workers."
            )
        self._coordinator = tf.distribute.coordinator.ClusterCoordinator(self._native)
        self._workers = len(tasks.cluster["worker"])
        self.communicator = Communicator.solo()
        log.info(
            "%d parameter servers and %d workers serve", len(tasks.cluster["ps"]), self._workers
        )

    def _owns(self, variable: Any) -> bool:
        parts = getattr(variable, "variables", None) or [variable]  # of one that is cut
        return all("/job:ps/" in part.device for part in parts)

    def stop_agreement(self, timeout: float) -> StepAgreement:
        """See ``Strategy.stop_agreement``: a parameter server that is to end asks for a stop."""
        if self._desk is None:
            raise AssertionError("used before connect")
        return StepAgreement(self._desk.notices(), 0, 1, timeout=timeout)

    def loader(self, dataset: Any, *, train: bool) -> Loader:
        """See ``TensorFlowStrategy.loader``: in training each worker has its part of the data."""
        return DispatchLoader(self._coordinator, dataset, self._workers, train=train)

    def finish(self) -> None:
        """See ``Strategy.finish``."""
        self._finished = True

    def close(self, *, failed: bool = False) -> None:
        """See ``Strategy.close``: after a job that is done, all who serve it end too."""
        if self._desk is not None:
            if self._finished and not failed:
                self._desk.say_goodbye()
            self._desk.close()
        super().close(failed=failed)


def _connected(tasks: Tasks, partitioner: Any) -> Any:
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(tasks.cluster), task_type="chief", task_id=0, rpc_layer="grpc"
    )
    try:
        with peer_losses("connecting"), signals_kept():
            return tf.distribute.ParameterServerStrategy(resolver, variable_partitioner=partitioner)
    except tf.errors.OpError as error:
        port = int(tasks.cluster["chief"][0].rpartition(":")[2])
        raise EnvironmentFaultError(
            f"TensorFlow cannot connect the chief ({first_line(error)}). If port {port} is in use "
            f"here, it is by {port_holder(port)}: end that process, or change the port in "
            f"TF_CONFIG."
        ) from None
