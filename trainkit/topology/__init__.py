"""Who am I: the topology of the job around this process."""

from trainkit.topology.sight import Sight
from trainkit.topology.topology import Role, Topology

__all__ = ["Role", "Sight", "Topology"]
