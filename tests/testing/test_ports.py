"""Ports that sessions side by side do not take from each other."""

import os
import socket
from pathlib import Path

from trainkit.testing import free_port, run_ranks
from trainkit.testing.ports import PortReservation


def ports_ranks(n: int) -> list[int]:
    return [free_port() for _ in range(n)]


def master_port_ranks() -> int:
    return int(os.environ["MASTER_PORT"])


def test_port_can_be_listened_on():
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as server:
        socket.create_connection(server.getsockname(), timeout=10).close()
        assert server.getsockname()[1] == port


def test_port_is_outside_the_range_of_outgoing_connections():
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert low - 10_000 <= free_port() < low


def test_port_in_use_is_passed_over(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        free = free_port()
        monkeypatch.setattr("trainkit.testing.ports._candidates", lambda: [taken, free + 1])
        reservations = [PortReservation()]
        assert reservations[0].port == free + 1
        reservations[0].release()


def test_processes_side_by_side_get_different_ports(monkeypatch):
    results = run_ranks(ports_ranks, 4, 50, preload=())
    assert all(len(set(result.value)) == 50 for result in results)
    reservation = PortReservation()
    monkeypatch.setattr(
        "trainkit.testing.ports._candidates",
        lambda: range(reservation.port, reservation.port + 2),
    )
    other = PortReservation()
    assert other.port == reservation.port + 1
    for each in (reservation, other):
        each.release()
    again = PortReservation()
    assert again.port in (reservation.port, other.port)
    again.release()


def test_reservations_do_not_pile_up():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        free_port()
    assert len(os.listdir("/proc/self/fd")) <= before + 64


def test_each_run_has_a_master_port_of_its_own():
    first, second = run_ranks(master_port_ranks, 2, preload=())
    assert first.value == second.value
    assert run_ranks(master_port_ranks, 1, env={"MASTER_PORT": "1"}, preload=())[0].value == 1
