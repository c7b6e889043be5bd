"""Who am I: the topology of the job around this process."""

from trainkit.topology.detection import detect
from trainkit.topology.environment import ClusterEnvironment
from trainkit.topology.sight import Sight
from trainkit.topology.topology import Role, Topology

__all__ = ["ClusterEnvironment", "Role", "Sight", "Topology", "detect"]
