"""A pod of a JAXJob (kubeflow.org/v1)."""

from trainkit.errors import TopologyError
from trainkit.topology.meeting import Master
from trainkit.topology.nodes import RanksPerNode, node
from trainkit.topology.parsing import address, missing, port, require_below, required_integer, shown
from trainkit.topology.sight import Sight
from trainkit.topology.topology import Role, Topology

__all__ = ["JaxJob"]

_PORT = 6666
_NAMES = ("COORDINATOR_ADDRESS", "PROCESS_ID", "NUM_PROCESSES")


class JaxJob:
    """Processes are pods: one process owns all GPUs of its pod.

    ``jax.distributed.initialize()`` reads none of these names; a TrainJob's JAX_* are other
    ones, with a port in the address.
    """

    name = "jaxjob"

    def detect(self, sight: Sight) -> bool:
        # Two of three are half a topology, and end in an error; one may be anybody's.
        return sum(sight.get(name) is not None for name in _NAMES) >= 2

    def topology(self, sight: Sight) -> Topology:
        where, which, many = _NAMES
        size = required_integer(sight, many, where, which, "TRAINKIT_PLATFORM", least=1)
        index = required_integer(sight, which, where, many)
        require_below(sight, which, index, many, size)
        return node(
            self.name,
            index=(index, which),
            count=(size, many),
            ranks=RanksPerNode(),
            master=_coordinator(sight),
            role=(Role.WORKER, index),
        )


def _coordinator(sight: Sight) -> Master:
    """The operator's name and port apart; an author may write both into the address."""
    where = _NAMES[0]
    text = sight.get(where)
    if text is None:
        raise missing(sight, where, *_NAMES[1:])
    given = port(sight, "COORDINATOR_PORT")
    host, number = address(where, text, default_port=given or _PORT)
    if given is not None and number != given:
        raise TopologyError(
            f"{shown(sight, where)} and {shown(sight, 'COORDINATOR_PORT')} name two ports. "
            f"Probably the pod's env overrides one of them. Keep one."
        )
    source = "COORDINATOR_PORT" if given is not None else "default"
    return Master(host, number, where, where if text.endswith(f":{number}") else source)
