"""Whether a proxy of Istio's stands between this pod and the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainkit.doctor.finding import Finding, Question, Status
from trainkit.doctor.job import topology_or_none
from trainkit.resources.istio import PORTS, health

__all__ = ["check", "look"]


def check(question: Question) -> Iterator[Finding]:
    """Ask the ports of a sidecar."""
    del question
    topology = topology_or_none()
    yield look(PORTS, topology.master_port if topology is not None else None)


def look(ports: Sequence[int], master_port: int | None) -> Finding:
    """Ask whether a sidecar answers on one of ``ports`` of this pod.

    Args:
        ports: to ask, in order.
        master_port: where ranks meet, to be excluded from the mesh.
    """
    for port in ports:
        status = health(port)
        if status is not None:
            return _present(port, status == 200, master_port)
    found = f"no Istio sidecar answers on port {' or '.join(map(str, ports))} of this pod"
    return Finding("sidecar", Status.OK, found, values={"present": False})


def _present(port: int, ready: bool, master_port: int | None) -> Finding:
    meeting = f'"{master_port}"' if master_port is not None else "the port of the master"
    state = "is ready" if ready else "is not ready: it lets no traffic through yet"
    advice = (
        'Label the pod template `sidecar.istio.io/inject: "false"` (an annotation in old '
        "releases). If the sidecar has to stay: a rendezvous needs "
        f"`traffic.sidecar.istio.io/excludeInboundPorts: {meeting}` and "
        "excludeOutboundPorts, collectives take any port, `holdApplicationUntilProxyStarts` "
        "keeps the start from failing, and only a native sidecar lets the pod complete."
    )
    return Finding(
        "sidecar",
        Status.WARNING,
        f"an Istio sidecar answers on port {port} and {state}",
        advice,
        {"present": True, "port": port, "ready": ready},
    )
