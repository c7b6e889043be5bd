"""torch's default process group over the store in which the ranks have met."""

import logging
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from trainkit import config
from trainkit.coordination.network import interface_towards, own_address_is_loopback
from trainkit.errors import EnvironmentFaultError
from trainkit.strategies.torch.link import TorchLink
from trainkit.topology import Topology

__all__ = ["close_process_group", "open_process_group"]

log = logging.getLogger(__name__)


def open_process_group(
    link: TorchLink | None, topology: Topology, device: torch.device, timeout: timedelta
) -> None:
    """Open the default process group: NCCL for GPUs (gloo beside it), gloo for CPUs.

    Args:
        link: to the other ranks; None for a world of one.
        topology: of this rank.
        device: of this rank.
        timeout: of each collective.

    Raises:
        EnvironmentFaultError: gloo would offer the others an address that leads nowhere.
    """
    store: dist.Store
    if link is None:
        store, rank, world_size = dist.HashStore(), 0, 1
    else:
        store = dist.PrefixStore(f"{link.prefix}/group", link.tcp)
        rank, world_size = link.communicator.rank, link.communicator.world_size
        if topology.num_nodes != 1:
            _choose_gloo_interface(link, topology)
    options: dict[str, Any] = {}
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        options["device_id"] = device  # connects NCCL now and not in the first step
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=timeout, **options
    )


def close_process_group(*, failed: bool) -> None:
    """Close the default process group; after a failure leave it to the process's end.

    Destroying a group waits for work in flight, which a dead peer never finishes.
    """
    if not failed and dist.is_initialized():
        dist.destroy_process_group()


def _choose_gloo_interface(link: TorchLink, topology: Topology) -> None:
    """Have gloo listen where the other hosts can reach it.

    gloo takes the address that this host's own name resolves to, which with hostNetwork, or
    with Debian's ``127.0.1.1 name`` line in /etc/hosts, is a loopback address.
    """
    communicator = link.communicator
    towards_master = None
    if topology.master_addr is not None and communicator.rank != 0:
        towards_master = interface_towards(topology.master_addr, topology.master_port or 0)
    interface = towards_master[0] if towards_master else None
    addresses = communicator.all_gather_object(towards_master[1] if towards_master else None)
    if config.environ().get("GLOO_SOCKET_IFNAME") or not own_address_is_loopback():
        return
    peer = next((address for address in addresses if address is not None), None)
    if peer is None:
        return  # all ranks reach the master over loopback, so they are on one host
    if interface is None:
        towards_peer = interface_towards(peer, 0)
        interface = towards_peer[0] if towards_peer else None
    if interface is None:
        raise EnvironmentFaultError(
            "this host's name resolves to a loopback address, so ranks on other hosts could not "
            "connect to gloo here. Mend /etc/hosts, or name the network interface in "
            "GLOO_SOCKET_IFNAME."
        )
    log.info("gloo listens on %s: the host's own name resolves to loopback", interface)
    # gloo reads its interface from the environment and nowhere else.
    config.set_environ({"GLOO_SOCKET_IFNAME": interface})
