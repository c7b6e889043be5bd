"""Names of the other pods: each must be known to DNS."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from trainkit import config
from trainkit.coordination.network import own_address_is_loopback
from trainkit.doctor.finding import Finding, Question, Status
from trainkit.doctor.job import topology_or_none
from trainkit.topology import Topology
from trainkit.waiting import Deadline, wait_until

__all__ = ["check", "names_of"]

_PATIENCE = 10.0
"""Seconds in which a name may still appear: Kubernetes makes it after its pod."""
_AT_ONCE = 32
_SHOWN = 5


def check(question: Question) -> Iterator[Finding]:
    """Resolve the names of all peers, and this host's own."""
    topology = topology_or_none()
    if topology is None:
        yield Finding("peers", Status.NOT_CHECKED, "the topology cannot be made out")
        return
    names = names_of(topology)
    if not names:
        found = "no peer is named: this job is of one host, or its launcher names none"
        yield Finding("peers", Status.NOT_CHECKED, found)
    else:
        seconds = min(_PATIENCE, (question.timeout or 2 * _PATIENCE) / 2)
        yield _resolved(names, seconds)
    if topology.num_nodes != 1 and own_address_is_loopback():
        yield _loopback()


def names_of(topology: Topology) -> list[str]:
    """Hosts that the topology names, without ports, each once."""
    found = [] if topology.master_addr is None else [topology.master_addr]
    found += [host for host, _ in topology.hosts or ()]
    for addresses in (topology.cluster or {}).values():
        for address in addresses:
            host, colon, port = address.rpartition(":")
            found.append((host if colon and port.isdecimal() else address).strip("[]"))
    return list(dict.fromkeys(found))


def _resolved(names: list[str], seconds: float) -> Finding:
    deadline = Deadline(seconds)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        problems = list(pool.map(lambda name: _problem(name, deadline), names))
    unknown = {name: text for name, text in zip(names, problems, strict=True) if text}
    values = {"names": names, "unknown": sorted(unknown)}
    if not unknown:
        found = f"{len(names)} name(s) of peers are known: {_some(names)}"
        return Finding("peers", Status.OK, found, values=values)
    found = f"{len(unknown)} of {len(names)} peers cannot be found in {seconds:g} s: " + _some(
        [f"{name} ({text})" for name, text in unknown.items()]
    )
    advice = (
        "Is that pod running, is there a headless Service for the job with the pods' subdomain "
        "(publishNotReadyAddresses: true), and may this pod reach the cluster's DNS?"
    )
    return Finding("peers", Status.BROKEN, found, advice, values)


def _problem(name: str, deadline: Deadline) -> str:
    """Why ``name`` does not resolve; empty if it does."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        pass
    else:
        return ""  # an address needs no DNS
    last = ""

    def known() -> bool:
        nonlocal last
        try:
            socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            last = "the DNS server does not answer"
            if error.errno != socket.EAI_AGAIN:
                last = "not known to DNS"
        except UnicodeError:
            last = "no valid host name"
        else:
            return True
        return False

    try:
        wait_until(known, what=f"the name {name}", deadline=deadline)
    except TimeoutError:
        return last
    return ""


def _loopback() -> Finding:
    host = socket.gethostname()
    given = config.environ().get("GLOO_SOCKET_IFNAME")
    found = f"this host's own name {host} resolves to a loopback address, or not at all"
    if given:
        found += f"; GLOO_SOCKET_IFNAME={given} is set"
        return Finding("own-name", Status.OK, found)
    advice = (
        "trainkit then finds gloo an interface; other programs need GLOO_SOCKET_IFNAME, or an "
        "/etc/hosts that gives this name its address."
    )
    return Finding("own-name", Status.WARNING, found, advice, {"host": host})


def _some(texts: list[str]) -> str:
    more = f", and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more
