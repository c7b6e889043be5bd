"""Workers in step: each computes a part of every batch, and gradients are summed over all."""

import logging
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from trainkit.coordination import Communicator, Store
from trainkit.coordination.network import own_address, port_holder
from trainkit.errors import EnvironmentFaultError, StrategyError
from trainkit.strategies.link import RankLink
from trainkit.strategies.tensorflow.base import (
    TensorFlowStrategy,
    keep_lines_single,
    limit_devices,
    signals_kept,
)
from trainkit.strategies.tensorflow.connect_guard import connect_guarded
from trainkit.strategies.tensorflow.loader import (
    Loader,
    ReplicaLoader,
    epoch_length,
    from_user,
    part_of,
)
from trainkit.strategies.tensorflow.losses import first_line, peer_losses
from trainkit.strategies.tensorflow.tasks import control_address
from trainkit.topology import Topology
from trainkit.waiting import Deadline, wait_until

__all__ = ["MultiWorker"]

log = logging.getLogger(__name__)


class MultiWorker(TensorFlowStrategy):
    """``tf.distribute.MultiWorkerMirroredStrategy`` over the ranks of the job.

    Each rank is one process, with one replica a GPU that it sees. Ranks meet in trainkit's own
    store first, which names who is missing; TensorFlow itself would only wait.
    """

    name: ClassVar[str] = "multi_worker"

    def __init__(self) -> None:
        """Prepare."""
        self._link: RankLink | None = None

    def connect(self, topology: Topology, timeout: float) -> None:
        """See ``Strategy.connect``."""
        _refuse_servers(topology)
        keep_lines_single()
        limit_devices(topology)
        self._link = RankLink.open(topology, timeout, address=control_address(topology))
        self.communicator: Communicator = self._link.communicator
        rank = self.communicator.rank
        cluster, job, index = _cluster(topology, self.communicator)
        _leave_store_alone(self.communicator, timeout)
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec(cluster), task_type=job, task_id=index, rpc_layer="grpc"
        )
        own = cluster[job][index]
        try:
            with (
                peer_losses("connecting"),
                signals_kept(),
                connect_guarded(_others(cluster, own), timeout),
            ):
                self._native = tf.distribute.MultiWorkerMirroredStrategy(resolver)
        except tf.errors.OpError as error:
            raise _cannot_serve(own, error) from None
        log.debug("rank %d is %s %d at %s", rank, job, index, own)

    def watch_store(self) -> Store:
        """See ``Strategy.watch_store``."""
        return _of(self._link).second_connection("watch")

    def loader(self, dataset: Any, *, train: bool) -> Loader:
        """See ``TensorFlowStrategy.loader``."""
        index, count = self.data_shard
        data = from_user(dataset, index, count)
        if isinstance(dataset, tf.data.Dataset):
            data = part_of(data, index, count, train=train)
        local = self._native.num_replicas_in_sync // count
        return ReplicaLoader(
            self._native, data, epoch_length(data, local), batches_a_step=local, ranks=count
        )

    def all_reduce(self, value: Any, op: str) -> Any:
        """See ``Strategy.all_reduce``: numbers by way of the store, tensors by TensorFlow."""
        if isinstance(value, int | float):
            return _COMBINE[op](np.array(self.communicator.all_gather_object(value)), axis=0).item()
        tensor = tf.convert_to_tensor(value)
        with peer_losses("an all-reduce"):
            return _combined(self._native, tensor, op, self.communicator.world_size)

    def close(self, *, failed: bool = False) -> None:
        """See ``Strategy.close``: the chief, which serves the store, leaves last."""
        if self._link is not None:
            self._link.close(failed=failed)
        super().close(failed=failed)


_COMBINE: dict[str, Any] = {"sum": np.sum, "mean": np.mean, "min": np.min, "max": np.max}
_COMBINE_TENSORS: dict[str, Any] = {
    "sum": tf.reduce_sum,
    "mean": tf.reduce_mean,
    "min": tf.reduce_min,
    "max": tf.reduce_max,
}


def _combined(strategy: Any, tensor: Any, op: str, world_size: int) -> Any:
    @tf.function  # type: ignore[untyped-decorator]
    def gather() -> Any:
        def own() -> Any:
            return tf.distribute.get_replica_context().all_gather(tensor[tf.newaxis], axis=0)

        return strategy.experimental_local_results(strategy.run(own))[0]

    # Each device of a rank has given the rank's value once.
    of_ranks = gather()[:: strategy.num_replicas_in_sync // world_size]
    return _COMBINE_TENSORS[op](of_ranks, axis=0)


def _refuse_servers(topology: Topology) -> None:
    servers = (topology.cluster or {}).get("ps", [])
    if servers:
        raise StrategyError(
            f"multi_worker has no use for parameter servers, and the cluster has {len(servers)}: "
            f"take PS out of the job, or use strategy='parameter_server'."
        )
    if topology.rank is None or topology.world_size is None:
        raise StrategyError(
            f"multi_worker needs the rank and the number of workers, which {topology.platform} "
            f"does not tell (enableDynamicWorker): leave enableDynamicWorker out of the TFJob."
        )


def _cluster(
    topology: Topology, communicator: Communicator
) -> tuple[dict[str, list[str]], str, int]:
    """TensorFlow's cluster, and this rank's job and index in it.

    TF_CONFIG tells it; under any other platform each rank tells where it will listen.
    """
    rank = communicator.rank
    given = {job: found for job, found in (topology.cluster or {}).items() if found}
    if not given:
        host = "127.0.0.1" if topology.num_nodes == 1 else own_address() or "127.0.0.1"
        address = f"{host}:{_free_port()}"
        return {"worker": communicator.all_gather_object(address)}, "worker", rank
    chiefs = len(given.get("chief", []))
    if chiefs > 1:
        raise StrategyError(
            f"TensorFlow wants one chief, and the cluster has {chiefs}: write replicas: 1 for "
            f"Chief, and the others as Worker."
        )
    return (given, "chief", rank) if rank < chiefs else (given, "worker", rank - chiefs)


def _others(cluster: dict[str, list[str]], own: str) -> dict[str, str]:
    """Address of every other task, by its name."""
    return {
        f"{job} {index}": address
        for job, addresses in cluster.items()
        if job in ("chief", "worker")
        for index, address in enumerate(addresses)
        if address != own
    }


def _leave_store_alone(communicator: Communicator, timeout: float) -> None:
    """Have all ranks done with the store before rank 0, which serves it, goes on.

    While TensorFlow waits for the other processes it holds Python's lock, so that the thread of
    the store cannot answer. A rank's ``set`` has its answer before rank 0 can see the key.
    """
    communicator.barrier("connecting TensorFlow", timeout=timeout)
    ranks = range(1, communicator.world_size)
    if communicator.rank != 0:
        communicator.store.set(f"connecting/{communicator.rank}", b"1")
        return
    wait_until(
        lambda: all(communicator.store.get(f"connecting/{rank}") for rank in ranks),
        what="the other ranks to connect",
        deadline=Deadline(timeout),
    )


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _cannot_serve(address: str, error: tf.errors.OpError) -> EnvironmentFaultError:
    port = int(address.rpartition(":")[2])
    return EnvironmentFaultError(
        f"TensorFlow cannot connect the workers from {address} ({first_line(error)}). If port "
        f"{port} is in use here, it is by {port_holder(port)}: end that process, or change the "
        f"port in TF_CONFIG."
    )


def _of(link: RankLink | None) -> RankLink:
    if link is None:
        raise AssertionError("used before connect")
    return link
