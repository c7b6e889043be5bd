import socket
import threading

import pytest

from trainkit.coordination.network import await_address, interface_towards, port_holder
from trainkit.errors import DeadlineError
from trainkit.waiting import Deadline


def test_a_port_that_opens_late_is_waited_for():
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        opener = threading.Timer(0.2, reserved.listen)
        opener.start()
        await_address("127.0.0.1", port, who="rank 1", deadline=Deadline(30))
        opener.join()


def test_a_host_that_refuses_is_asked_often_however_long_it_takes(monkeypatch):
    """Else whoever waits for a minute would lose another second when the port is there."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        paused = []

        def sleep(seconds):
            paused.append(seconds)
            if len(paused) == 60:
                reserved.listen()

        monkeypatch.setattr("trainkit.waiting.time.sleep", sleep)
        port = reserved.getsockname()[1]
        await_address("127.0.0.1", port, who="rank 1", deadline=Deadline(30))
    assert len(paused) == 60
    assert max(paused) == 0.05


def test_a_name_that_never_appears_is_named():
    with pytest.raises(DeadlineError) as failure:
        await_address("late.invalid", 29500, who="rank 1", deadline=Deadline(0.2))
    message = str(failure.value)
    assert "rank 1 to reach the master at late.invalid:29500" in message
    assert "late.invalid is not known to DNS" in message
    assert "TRAINKIT_TIMEOUT" in message


def test_a_name_that_resolves_late_is_waited_for(monkeypatch):
    asked = []
    resolve = socket.getaddrinfo

    def late(host, *rest, **options):
        if host == "late.test":
            asked.append(host)
            if len(asked) < 4:
                raise socket.gaierror(-2, "Name or service not known")
            host = "127.0.0.1"
        return resolve(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", late)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        await_address("late.test", port, who="rank 1", deadline=Deadline(30))
    assert len(asked) == 4


def test_the_holder_of_a_port_is_named():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        import os

        assert str(os.getpid()) in port_holder(server.getsockname()[1])


def test_loopback_is_no_interface_towards_others():
    assert interface_towards("127.0.0.1", 1) is None
