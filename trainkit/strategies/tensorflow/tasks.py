"""Who is who in a cluster of TensorFlow's, from the topology alone; imports no TensorFlow."""

from dataclasses import dataclass

from trainkit.errors import StrategyError
from trainkit.topology import Role, Topology

__all__ = ["Task", "Tasks", "control_address"]


@dataclass(frozen=True, slots=True)
class Task:
    """One process of the cluster, in TensorFlow's words."""

    job: str
    """``chief``, ``worker`` or ``ps``."""
    index: int

    def __str__(self) -> str:
        return f"{self.job} {self.index}"


@dataclass(frozen=True, slots=True)
class Tasks:
    """A cluster with parameter servers, as TensorFlow wants it."""

    cluster: dict[str, list[str]]
    """``chief``, ``worker`` and ``ps`` → addresses."""
    own: Task | None
    """This process; None for an evaluator."""

    @classmethod
    def of(cls, topology: Topology) -> "Tasks":
        """Read them from the topology.

        A cluster without a chief is led by its worker 0, which then computes no steps itself:
        the other workers count from 0 again, the same in every process.

        Raises:
            StrategyError: such a cluster cannot train; the message says what it lacks.
        """
        given = topology.cluster or {}
        chiefs, workers = given.get("chief", []), given.get("worker", [])
        servers = given.get("ps", [])
        if not chiefs and topology.rank is None and topology.world_size is None:
            raise StrategyError(
                "the cluster does not say who leads it: a sparse TF_CONFIG (enableDynamicWorker) "
                "shows a pod little more than itself. Leave enableDynamicWorker out of the TFJob."
            )
        led_by_worker = not chiefs
        if led_by_worker:
            chiefs, workers = workers[:1], workers[1:]
        _require_trainable(len(chiefs), len(workers), len(servers), led_by_worker)
        cluster = {"chief": chiefs, "worker": workers, "ps": servers}
        return cls(cluster, _own(topology, led_by_worker))

    @property
    def servers(self) -> list[Task]:
        """Everybody who serves the chief: parameter servers, then workers."""
        return [
            Task(job, index) for job in ("ps", "worker") for index in range(len(self.cluster[job]))
        ]

    def address(self, task: Task) -> str:
        """``host:port`` of a task."""
        return self.cluster[task.job][task.index]


def _own(topology: Topology, led_by_worker: bool) -> Task | None:
    if topology.role is Role.EVALUATOR:
        return None
    index = topology.role_index or 0
    if topology.role is Role.PS:
        return Task("ps", index)
    if topology.role is Role.CHIEF or topology.rank == 0:
        return Task("chief", 0)
    return Task("worker", index - 1 if led_by_worker else index)


def _require_trainable(chiefs: int, workers: int, servers: int, led_by_worker: bool) -> None:
    if chiefs > 1:
        raise StrategyError(
            f"parameter_server has one chief, and the cluster has {chiefs}: write replicas: 1 for "
            f"Chief, and the others as Worker."
        )
    if servers == 0:
        raise StrategyError(
            "parameter_server needs at least one ps, and the cluster has none: add PS replicas to "
            "the job, or use strategy='multi_worker'."
        )
    if workers == 0:
        why = ": worker 0 leads it, since there is no chief" if led_by_worker else ""
        raise StrategyError(
            f"parameter_server needs at least one worker beside the chief, and the cluster has "
            f"none{why}. Add a Chief, or Worker replicas, to the job."
        )


def control_address(topology: Topology) -> tuple[str, int] | None:
    """Where the chief tells the others of its beginning and its end; None outside of a cluster.

    TensorFlow's own server has the chief's port. This one is the first above it that no address
    of the cluster uses, so that a cluster on one host works too; every process finds the same.

    Raises:
        StrategyError: there is no such port.
    """
    cluster, host, port = topology.cluster, topology.master_addr, topology.master_port
    if not cluster or host is None or port is None:
        return None
    taken = {address.rpartition(":")[2] for addresses in cluster.values() for address in addresses}
    above = (number for number in range(port + 1, 65536) if str(number) not in taken)
    found = next(above, None)
    if found is None:
        raise StrategyError(
            f"the chief's port is {port}, and there is none above it for trainkit's own messages: "
            f"give the chief a lower one."
        )
    return host, found
