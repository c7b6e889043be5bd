"""A parameter server that a person starts, where no operator gives roles."""

from trainkit.errors import TopologyError
from trainkit.topology.parsing import required_integer, shown
from trainkit.topology.sight import Sight
from trainkit.topology.topology import Role, Topology

__all__ = ["Servers"]

_INDEX, _HOSTS = "TRAINKIT_PS_INDEX", "TRAINKIT_PS_HOSTS"


class Servers:
    """TRAINKIT_PS_INDEX says which of TRAINKIT_PS_HOSTS this process is.

    Ranks have the list alone: they are started by torchrun, by hand, or by an operator's job that
    knows no ps.
    """

    name = "servers"

    def detect(self, sight: Sight) -> bool:
        return sight.get(_INDEX) is not None

    def topology(self, sight: Sight) -> Topology:
        index = required_integer(sight, _INDEX, _HOSTS, "TRAINKIT_PLATFORM")
        hosts = [part.strip() for part in (sight.get(_HOSTS) or "").split(",") if part.strip()]
        if index >= len(hosts):
            raise TopologyError(
                f"{shown(sight, _INDEX)}, and {_HOSTS} names {len(hosts)} parameter server(s). "
                f"Indexes count from 0; set {_HOSTS}=host:port,… the same in all processes."
            )
        return Topology(
            platform=self.name,
            role=Role.PS,
            role_index=index,
            rank=None,
            world_size=None,
            local_rank=None,
            local_world_size=0,
            node_rank=None,
            num_nodes=None,
            cluster={"ps": hosts},
            sources={
                "role": _INDEX,
                "role_index": _INDEX,
                "rank": _INDEX,
                "local_rank": _INDEX,
                "local_world_size": _INDEX,
                "cluster": _HOSTS,
            },
        )
