"""Where the parameter servers are, by what the operator or a person says."""

from trainkit import config
from trainkit.errors import StrategyError, UsageError
from trainkit.topology import Topology

__all__ = ["Address", "server_addresses"]

Address = tuple[str, int]


def server_addresses(topology: Topology) -> list[Address]:
    """Host and port of every parameter server, in the order of their indexes.

    They come from the cluster of the topology (TF_CONFIG, MX_CONFIG), else from
    TRAINKIT_PS_HOSTS.

    Raises:
        StrategyError: nobody names a server, or only some.
        UsageError: an address that is none.
    """
    cluster = topology.cluster or {}
    texts = cluster.get("ps") or list(config.settings().ps_hosts)
    if not texts:
        raise StrategyError(
            f"strategy='parameter_server' needs parameter servers, and nothing names one "
            f"({topology.summary()}). Give the job ps replicas (PS in a TFJob, Server in an "
            f"MXJob), or start processes with TRAINKIT_PS_INDEX and set TRAINKIT_PS_HOSTS="
            f"host:port,… in all; without servers use strategy='ddp'."
        )
    return [_address(text) for text in texts]


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"the parameter server's address {text!r}: expected host:port")
    return host, int(port)
